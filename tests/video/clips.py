"""Real videos for tests: crops that move over bundled photos, encoded by FFmpeg."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import BUNDLED

av = pytest.importorskip("av", reason="needs the extra video")

RATE = 25
SIZE = (96, 64)  # width, height


def crops(count: int, size: tuple[int, int] = SIZE) -> Iterator[Image.Image]:
    """A crop that moves over an image, two pixels a frame."""
    with zipfile.ZipFile(BUNDLED) as archive:
        name = min(name for name in archive.namelist() if name.endswith(".webp"))
        photo = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
    photo = photo.resize((size[0] + 2 * count, 2 * size[1]))
    for i in range(count):
        yield photo.crop((2 * i, 10, 2 * i + size[0], 10 + size[1]))


def make_clip(
    path: Path,
    count: int = 20,
    *,
    size: tuple[int, int] = SIZE,
    options: dict[str, str] | None = None,
) -> Path:
    """A video of H.264 frames, 25 a second, with B-frames as phones and cameras write them."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"g": "10", "crf": "12"}
        for crop in crops(count, size):
            container.mux(stream.encode(av.VideoFrame.from_image(crop)))
        container.mux(stream.encode(None))
    return path


def make_sound(path: Path) -> Path:
    """A file of a second of silence, and no video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame(format="s16", layout="mono", samples=8000)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.sample_rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn_clip(clip: Path, to: Path, matrix: tuple[int, int, int, int]) -> Path:
    """A copy whose track header asks players to turn the picture, as phones write it."""
    content = bytearray(clip.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # behind version, times, track, layer and volume
    a, b, c, d = (entry << 16 for entry in matrix)
    struct.pack_into(">9i", content, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    to.write_bytes(content)
    return to


def times_of(path: Path) -> list[float]:
    """Times of the frames of a video, by PyAV."""
    with av.open(str(path)) as container:
        start = (container.start_time or 0) / 1e6
        return [frame.time - start for frame in container.decode(video=0)]
