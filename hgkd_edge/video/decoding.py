"""From a source to upright RGB frames, by PyAV."""

from __future__ import annotations

import math
import shlex
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from types import ModuleType
from typing import Any

from PIL import Image

from hgkd_edge.data.images import MAX_PIXELS
from hgkd_edge.errors import DataError, MissingPackageError, StreamLost
from hgkd_edge.video.sources import Source

__all__ = ["Frame", "Opened", "import_av", "open_source"]

READ_TIMEOUT = 10.0  # seconds that a source may be silent
MAX_STRETCH = 16  # pixel aspect ratio beyond which a file is damaged
CUT_OFF = 0.5  # seconds that may be missing at the end before a file counts as cut off
WITHOUT_TIMES = ("avi",)  # formats with a constant frame rate and times in decoding order
# What a display matrix's four entries (x to x, x to y, y to x, y to y) do to the stored picture.
UPRIGHT = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


@dataclass(frozen=True)
class Frame:
    """One decoded frame.

    Attributes:
        index: 0, 1, ...: counts every decoded frame, also those dropped later.
        time: Seconds since the start, as a player shows them; of one connection to a live source,
            seconds by its own clock, NaN if it states none.
        image: RGB, upright, of square pixels.
        decode_s: Seconds that decoding and conversion took.
        arrived: When a live frame was decoded, UTC.
    """

    index: int
    time: float
    image: Image.Image
    decode_s: float
    arrived: datetime | None = None


def import_av() -> ModuleType:
    """PyAV.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingPackageError("reading videos", package="av", extra="video") from error
    av.logging.set_level(av.logging.PANIC)  # relevant problems are raised or counted
    return av


class Opened:
    """An open source.

    Args:
        source: What it is.
        container: PyAV's open container.
        stream: Its video stream.

    Attributes:
        live: Frames arrive whether or not they are read: a camera, or a stream without length.
        damaged: Packets that could not be decoded so far.
        seconds: Length that a file states; None if it states none.
        reached: Where the last frame ends, as `Frame.time`.
        fault: The error that ended reading before the end of the file; '' if none.
    """

    def __init__(self, source: Source, container: Any, stream: Any) -> None:
        self.source, self._container, self._stream = source, container, stream
        stored = source.kind == "file" or (
            source.url.lower().startswith("http") and container.duration is not None
        )
        self.live = not stored
        self.damaged, self.reached, self.fault = 0, 0.0, ""
        self.seconds = _length(container, stream)
        self._upright = _Upright(stream.sample_aspect_ratio)
        if stored:
            stream.thread_type = "AUTO"  # frame threading would delay a camera's frames

    def frames(self) -> Iterator[Frame]:
        """All frames in the order in which they are shown; closes the source at the end.

        Raises:
            DataError: A live source broke, or a frame of a file has too many pixels.
            StreamLost: A frame of a live source has too many pixels.
        """
        start = (self._container.start_time or 0) / 1e6
        rate = float(self._stream.average_rate or 25)
        try:
            for index, (frame, image, spent) in enumerate(self._decoded()):
                if self.live:
                    stated = math.nan if frame.time is None else frame.time
                    yield Frame(index, stated, image, spent, datetime.now(timezone.utc))
                    continue
                counted = frame.time is None or self._container.format.name in WITHOUT_TIMES
                at = index / rate if counted else frame.time - start
                shown = float((frame.duration or 0) * (frame.time_base or 0))
                self.reached = max(self.reached, at + max(1 / rate, shown))
                yield Frame(index, at, image, spent)
        finally:
            self.close()

    def close(self) -> None:
        """Close the source; no frames can be read any more."""
        self._container.close()

    @property
    def frame_count(self) -> int | None:
        """Estimated number of frames; None for a live source, or if the file does not state it."""
        if self.live:
            return None
        rate = float(self._stream.average_rate or 0)
        return self._stream.frames or round((self.seconds or 0) * rate) or None

    @property
    def is_cut_off(self) -> bool:
        """Whether frames are missing at the end of the file; valid after all frames are read."""
        lacks = self.seconds is not None and self.seconds - self.reached > CUT_OFF
        return not self.live and (lacks or bool(self.fault))

    def _decoded(self) -> Iterator[tuple[Any, Image.Image, float]]:
        """PyAV's frames, as pictures, and the seconds that each took."""
        for packet in self._packets():
            begun = time.perf_counter()
            try:
                frames = packet.decode() if packet is not None else self._stream.decode(None)
            except _failures():
                self.damaged += 1
                continue
            for frame in frames:
                if frame.width * frame.height > MAX_PIXELS:
                    raise self._too_large(frame)
                image = self._upright.image(frame)
                yield frame, image, time.perf_counter() - begun
                begun = time.perf_counter()

    def _too_large(self, frame: Any) -> DataError | StreamLost:
        """The error for a frame with more pixels than an image may have."""
        kind = StreamLost if self.live else DataError  # connecting again would not help
        size = f"{frame.width} x {frame.height}"
        return kind(
            f"{self.source.shown}: a frame has {size} pixels; frames have {MAX_PIXELS:,} at most",
            hint=_by_ffmpeg(self.source, "make it smaller", "-vf scale=1920:-2 smaller.mp4"),
        )

    def _packets(self) -> Iterator[Any]:
        """Packets of the video; None where a damaged file ends, to empty the decoder."""
        try:
            yield from self._container.demux(self._stream)
        except _failures() as error:
            self.fault = what_failed(error)
            if self.live:
                raise DataError(self.fault) from error
            yield None


def open_source(source: Source) -> Opened:
    """Open a source and find its video.

    Raises:
        DataError: It cannot be opened, or holds no video.
        MissingPackageError: PyAV is not installed.
    """
    av = import_av()
    try:
        container = av.open(
            source.url,
            format=source.format,
            options=source.options,
            timeout=READ_TIMEOUT,
            **_for_any_text(av),
        )
    except (_failures(), ValueError) as error:
        raise DataError(
            f"{source.shown}: cannot be opened as a video: {what_failed(error)}",
            hint=_hint_for(source, error),
        ) from error
    picture = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & picture]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        container.close()
        raise DataError(
            f"{source.shown}: holds no video, only {kinds}", hint="name a file or stream with video"
        )
    if streams[0].codec_context is None:
        container.close()
        raise DataError(
            f"{source.shown}: FFmpeg has no decoder for its video",
            hint=_by_ffmpeg(source, "convert it", "-c:v libx264 converted.mp4"),
        )
    return Opened(source, container, streams[0])


def _for_any_text(av: ModuleType) -> dict[str, Any]:
    """Options of `av.open` that accept metadata not in UTF-8. PyAV 19 needs none."""
    return {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


def what_failed(error: BaseException) -> str:
    """FFmpeg's reason without the URL, which may hold a password."""
    if isinstance(error, import_av().error.ExitError):  # our own time limit
        return f"no data for {READ_TIMEOUT:.0f} s"
    reason = getattr(error, "strerror", None)
    return str(reason) if reason else type(error).__name__


class _Upright:
    """Makes frames what players display: RGB, turned by the display matrix, of square pixels.

    One converter serves all frames: one for each would start threads for each. The display matrix
    is read only where the rotation changes, because a frame whose side data were read stays in
    memory until the garbage collector runs.

    Args:
        pixel_shape: Width of a pixel to its height; None or 0: unknown, taken as square.
    """

    def __init__(self, pixel_shape: Any) -> None:
        from av.video.reformatter import VideoReformatter

        self._stretch = float(pixel_shape or 1)
        self._converter = VideoReformatter()
        self._rotation: int | None = None
        self._turn: Image.Transpose | None = None

    def image(self, frame: Any) -> Image.Image:
        """PyAV's frame as a picture."""
        width = frame.width
        if 1 / MAX_STRETCH < self._stretch < MAX_STRETCH:
            stretched = max(1, round(frame.width * self._stretch))
            width = stretched if stretched * frame.height <= MAX_PIXELS else width
        shown = self._converter.reformat(frame, width=width, height=frame.height, format="rgb24")
        image: Image.Image = shown.to_image()
        if frame.rotation != self._rotation:
            self._rotation, self._turn = frame.rotation, _display_turn(frame)
        return image if self._turn is None else image.transpose(self._turn)


def _display_turn(frame: Any) -> Image.Transpose | None:
    """The rotation of a frame's display matrix; None if none, or not a right angle."""
    try:
        stored = bytes(frame.side_data["DISPLAYMATRIX"])
    except KeyError:
        return None
    matrix = struct.unpack("=9i", stored[:36])
    signs = tuple(round(math.copysign(1, v)) if v else 0 for v in matrix)
    return UPRIGHT.get((signs[0], signs[1], signs[3], signs[4]))


def _length(container: Any, stream: Any) -> float | None:
    """Seconds of video that a container states."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return float(container.duration / 1e6)
    return None


def _failures() -> type[Exception]:
    """What PyAV raises where FFmpeg fails."""
    failure: type[Exception] = import_av().error.FFmpegError
    return failure


def _by_ffmpeg(source: Source, what: str, options: str) -> str:
    """A command that converts a file; '' for a camera or a stream, which is no file to convert."""
    if source.kind != "file":
        return ""
    return f"{what}: ffmpeg -i {shlex.quote(source.shown)} {options}"


def _hint_for(source: Source, error: BaseException) -> str:
    if source.kind == "camera":
        return "list cameras: v4l2-ctl --list-devices; another program may hold this one"
    if source.kind == "stream":
        return "check the address, password and network; try: ffplay URL"
    if isinstance(error, OSError) and not isinstance(error, ValueError):
        return "check the path"
    return "the file is damaged, still being written, or no video"
