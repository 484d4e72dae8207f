"""Frames of a camera, a video file or a stream through GStreamer, decoded by the Jetson.

Requirements are part of JetPack: `sudo apt install python3-gi gir1.2-gst-plugins-base-1.0`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator, Tuple

import numpy as np
from PIL import Image


def pipeline(source: str, *, jetson: bool, width: int, height: int, rate: int) -> str:
    """The elements that bring a source to RGB frames, as gst-launch writes them.

    Names and addresses are not in it: `frames` sets them as properties, so nothing needs quoting.

    Args:
        source: `csi:0` (a camera on the CSI connector), `/dev/video0`, a file, or an address such
            as rtsp://...
        jetson: Whether NVIDIA's elements are available.
        width: Frame width of a CSI camera. Width, height and rate must be a mode of the camera.
    """
    if source.startswith("csi:"):
        first = (
            "nvarguscamerasrc name=source ! video/x-raw(memory:NVMM),"
            "width=%d,height=%d,framerate=%d/1" % (width, height, rate)
        )
    elif source.startswith("/dev/"):
        first = "v4l2src name=source ! decodebin"
    else:
        first = "uridecodebin name=source"
    # The decoder leaves frames in the GPU's memory; nvvidconv copies them to host memory.
    to_memory = " ! nvvidconv ! video/x-raw,format=BGRx" if jetson else ""
    is_live = not first.startswith("uridecodebin") or "://" in source
    keep = "max-buffers=1 drop=true" if is_live else "max-buffers=4"
    return (
        first + to_memory + " ! videoconvert ! video/x-raw,format=RGB"
        " ! appsink name=sink sync=false " + keep
    )


def source_property(source: str) -> Tuple[str, Any]:
    """Name and value of the property that sets the source element's input."""
    if source.startswith("csi:"):
        return "sensor-id", int(source[4:])
    if source.startswith("/dev/"):
        return "device", source
    return "uri", source if "://" in source else Path(source).resolve().as_uri()


def image_of(data: bytes, width: int, height: int) -> Image.Image:
    """An RGB buffer as an image: GStreamer pads rows to multiples of 4 bytes."""
    stride = (3 * width + 3) // 4 * 4
    rows = np.frombuffer(data, np.uint8, stride * height).reshape(height, stride)
    return Image.fromarray(rows[:, : 3 * width].reshape(height, width, 3).copy())


def frames(
    source: str, *, width: int = 1280, height: int = 720, rate: int = 30
) -> Iterator[Image.Image]:
    """RGB frames until the source ends.

    Raises:
        RuntimeError: The source cannot be opened, or the pipeline breaks.
    """
    import gi

    gi.require_version("Gst", "1.0")
    from gi.repository import Gst

    Gst.init(None)
    jetson = Gst.ElementFactory.find("nvvidconv") is not None
    elements = pipeline(source, jetson=jetson, width=width, height=height, rate=rate)
    running = Gst.parse_launch(elements)
    running.get_by_name("source").set_property(*source_property(source))
    sink = running.get_by_name("sink")
    running.set_state(Gst.State.PLAYING)
    try:
        while True:
            # A failing source does not end the stream: waiting only for a frame would block
            # forever.
            sample = sink.emit("try-pull-sample", Gst.SECOND)
            if sample is not None:
                form, buffer = sample.get_caps().get_structure(0), sample.get_buffer()
                data = buffer.extract_dup(0, buffer.get_size())
                yield image_of(data, form.get_value("width"), form.get_value("height"))
                continue
            error = running.get_bus().pop_filtered(Gst.MessageType.ERROR)
            if error is not None:
                raise RuntimeError("GStreamer: %s" % error.parse_error()[0].message)
            if sink.get_property("eos"):
                return
    finally:
        running.set_state(Gst.State.NULL)
