"""Output files of a video: JSON lines, and an annotated video that is always playable."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image, ImageOps

from hgkd_edge.video.decoding import import_av

__all__ = ["AnnotatedVideo", "JsonLines"]

# Ticks per second: frames of 24, 25, 30, 29.97, 50, 59.94 and 60 per second fall on whole ones, and
# MPEG-4 takes no finer clock.
CLOCK = 60_000
# Written in fragments of a second, playable if the process is killed; merged at the end.
PIECES = {"movflags": "hybrid_fragmented", "frag_duration": "1000000", "flush_packets": "1"}
ENCODERS = {"libx264": "H.264", "libopenh264": "H.264", "mpeg4": "MPEG-4 Part 2"}


class JsonLines:
    """A file of one JSON record a line; each line is written whole or, on a full disk, removed.

    Args:
        path: The file.
        append: Keep the records that it holds.
    """

    def __init__(self, path: Path, *, append: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab" if append else "wb", buffering=0)
        self.path = path

    def write(self, record: Mapping[str, object]) -> None:
        """Append one record.

        Raises:
            OSError: It cannot be written; names the file.
        """
        line = (json.dumps(record) + "\n").encode()
        before = self._file.tell()
        try:
            if self._file.write(line) != len(line):
                os.fsync(self._file.fileno())  # raises with the reason
                raise OSError(28, os.strerror(28), str(self.path))
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(before)
            number = error.errno or 0
            raise OSError(number, os.strerror(number), str(self.path)) from error

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class AnnotatedVideo:
    """An MP4 file of pictures at their times.

    Args:
        path: The file; made when the first picture comes.

    Attributes:
        codec: What the pictures are encoded with, for people; '' before the first.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.codec = path, ""
        self._container: Any = None
        self._stream: Any = None
        self._last = -1

    def write(self, picture: Image.Image, time: float) -> None:
        """Append a picture that is shown from `time` on, in seconds.

        All pictures get the size of the first: others are fitted into it, with black margins.
        """
        av = import_av()
        if self._container is None:
            self._open(picture.size)
        size = self._stream.width, self._stream.height
        if picture.size != size:
            near = all(0 <= s - p <= 1 for p, s in zip(picture.size, size, strict=True))
            picture = picture.crop((0, 0, *size)) if near else ImageOps.pad(picture, size)
        frame = av.VideoFrame.from_image(picture)
        frame.pts = self._last = max(self._last + 1, round(time * CLOCK))
        frame.time_base = Fraction(1, CLOCK)
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> AnnotatedVideo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._container is None:
            return
        # After an error, a second error of the same cause would hide it.
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self._container.mux(self._stream.encode(None))
            self._container.close()

    def _open(self, size: tuple[int, int]) -> None:
        av = import_av()
        encoder = next(name for name in ENCODERS if name in av.codecs_available)
        self.codec = f"{ENCODERS[encoder]}, {encoder}"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(f"file:{self.path}", "w", format="mp4", options=PIECES)
        stream = self._container.add_stream(encoder, rate=25)
        # 4:2:0 takes even sides. An odd side gets a black column or row.
        stream.width, stream.height = (side + side % 2 for side in size)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, CLOCK)
        if encoder == "libx264":
            # The encoder holds back no frame: every processed frame is in the file.
            stream.options = {"preset": "veryfast", "tune": "zerolatency", "crf": "23"}
        else:
            stream.codec_context.bit_rate = max(1_000_000, 6 * stream.width * stream.height)
        self._stream = stream
