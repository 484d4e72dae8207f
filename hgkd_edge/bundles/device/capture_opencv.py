"""Frames of a camera, a video file or a stream through OpenCV (`apt install python3-opencv`)."""

from __future__ import annotations

from typing import Any, Iterator, Union

from PIL import Image


def frames(source: str, capture: Any = None) -> Iterator[Image.Image]:
    """RGB frames until the source ends.

    Args:
        source: `0` (the first camera), `/dev/video1`, a file, or an address such as rtsp://...
        capture: An opened `cv2.VideoCapture`, or an object with its `isOpened`, `read` and
            `release`.

    Raises:
        RuntimeError: The source cannot be opened.
    """
    if capture is None:
        import cv2

        number: Union[str, int] = int(source) if source.isdigit() else source
        capture = cv2.VideoCapture(number)
    try:
        if not capture.isOpened():
            raise RuntimeError("OpenCV cannot open '%s'" % source)
        while True:
            there, frame = capture.read()  # u8[H, W, 3], blue first
            if not there:
                return
            yield Image.fromarray(frame[:, :, ::-1].copy())
    finally:
        capture.release()
