"""`predict` on videos, cameras and streams, and on folders being filled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from threading import Event
from typing import Any

from PIL import Image

from hgkd_edge.answering import answer_image, require_threshold
from hgkd_edge.cells import counted
from hgkd_edge.console import console, track_steps, warn
from hgkd_edge.errors import DataError, StreamLost, reason_of
from hgkd_edge.files import remove_leftovers, require_writable_folder, write_json
from hgkd_edge.predict import answer_file
from hgkd_edge.stages import Stages
from hgkd_edge.stopping import StopFlag, stop_on_signal
from hgkd_edge.task_model import TaskModel, open_task_model
from hgkd_edge.tasks import pictures
from hgkd_edge.tasks.answers import FileAnswer
from hgkd_edge.video.decoding import Frame, Opened, open_source
from hgkd_edge.video.live import LiveClock, stay_connected
from hgkd_edge.video.queue import ReadAhead
from hgkd_edge.video.sources import Source
from hgkd_edge.video.watch_folder import PAUSE, stamp_of, watch_folder
from hgkd_edge.video.writing import AnnotatedVideo, JsonLines

__all__ = ["Options", "Summary", "predict_folder", "predict_videos"]


@dataclass(frozen=True)
class Options:
    """Options of video prediction.

    Attributes:
        threshold: Lowest score of a box or a label; None is the model's own.
        trust_engine: As for `open_task_model`.
        limit: Frames (or images of a watched folder) to answer at most; None: all.
        annotate: Whether an annotated video is written.
        patience: Seconds to wait for a broken live source.

    Raises:
        DataError: The patience is not a time.
    """

    threshold: float | None = None
    trust_engine: bool = False
    limit: int | None = None
    annotate: bool = True
    patience: float = 60.0

    def __post_init__(self) -> None:
        if not self.patience >= 0:  # NaN neither
            raise DataError(
                f"--reconnect must be 0 or more, not {self.patience:g}", hint="seconds, such as 60"
            )


@dataclass
class Summary:
    """The result for one source.

    Attributes:
        source: Its name, without passwords.
        live: Whether it is a camera, a stream or a watched folder.
        frames: Number of frames processed.
        errors: Those of them that have an `error` in place of an answer.
        dropped: Frames of a live source that were dropped, because newer ones were available.
        damaged: Packets that could not be decoded.
        reconnects: How often a live source broke and was opened again.
        seconds: From the first frame on.
        frames_per_s: End to end.
        stages: Milliseconds by stage, as `Stages.summary`.
        answers: The JSON lines.
        video: The annotated video; None if there is none.
        codec: Its codec and encoder.
        cut_off: What is missing at the end of a file; '' if nothing is.
        stopped: Whether Ctrl-C or SIGTERM ended it.
    """

    source: str
    live: bool
    answers: str
    frames: int = 0
    errors: int = 0
    dropped: int = 0
    damaged: int = 0
    reconnects: int = 0
    seconds: float = 0.0
    frames_per_s: float = 0.0
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    video: str | None = None
    codec: str = ""
    cut_off: str = ""
    stopped: bool = False


def predict_videos(
    model: Path, sources: Sequence[Source], folder: Path, options: Options
) -> list[Summary]:
    """Process every frame of video files, or as many frames of one live source as possible.

    Writes to `folder`, for each source: `NAME.jsonl`, one record a frame; `NAME-annotated.mp4`;
    and `NAME-summary.json`. A live source ends by Ctrl-C, SIGTERM or `options.limit`; its records
    are appended to those of earlier calls.

    Args:
        model: What `open_task_model` takes.
        sources: Video files, or one live source.
        folder: Output folder.
        options: Options.

    Raises:
        RunError: The model cannot be opened.
        DataError: A source cannot be opened, or no frame of it can be answered.
        ExportError: `folder` cannot be written to.
        StreamLost: A live source broke and did not come back.
        MissingPackageError: PyAV, or the model's runtime, is not installed.
    """
    _require_folder(folder)
    if len(sources) > 1 and any(source.kind != "file" for source in sources):
        raise DataError(
            "a camera or stream must be the only input", hint="start one predict for each of them"
        )
    first = open_source(sources[0])  # fail on a mistyped name before loading the model
    for source in sources[1:]:
        open_source(source).close()
    answerer = _open_model(model, options)
    stems = [
        folder / pictures.picture_name(i, source.name).removesuffix(".png")
        for i, source in enumerate(sources)
    ]
    for stem in stems:
        require_writable_folder(stem.with_name(f"{stem.name}.jsonl"))
    remove_leftovers(folder)
    made = []
    for i, (source, stem) in enumerate(zip(sources, stems, strict=True)):
        opened = first if i == 0 else open_source(source)
        with stop_on_signal("frame") as flag:
            made.append(_Video(answerer, opened, stem, options, flag).answer())
        if flag.asked:
            break
    return made


def predict_folder(model: Path, watched: Path, folder: Path, options: Options) -> Summary:
    """Process the images of a folder as they appear, until Ctrl-C, SIGTERM or `options.limit`.

    Appends to `predictions.jsonl` in `folder`, and writes the pictures there. A file that cannot be
    read may still be written to: it is tried again when it changes, and has an `error` only if it
    never could.

    Args:
        model: What `open_task_model` takes.
        watched: The folder.
        folder: Where answers go.
        options: Options.

    Raises:
        RunError: The model cannot be opened.
        DataError: There is no such folder.
        ExportError: `folder` cannot be written to.
    """
    _require_folder(folder)
    if not watched.is_dir():
        raise DataError(f"--watch: {watched} is not a folder", hint="name the folder to be watched")
    if folder.resolve() in (watched.resolve(), *watched.resolve().parents):
        raise DataError(
            f"--out {folder}: holds the watched folder, whose images would count as predictions",
            hint="name another folder with --out",
        )
    answerer = _open_model(model, options)
    summary = Summary(str(watched), live=True, answers=str(folder / "predictions.jsonl"))
    require_writable_folder(Path(summary.answers))
    remove_leftovers(folder)
    stages, unread = Stages(), dict[str, FileAnswer]()
    console.print(f"watching {watched}; Ctrl-C ends", soft_wrap=True)
    with (
        stop_on_signal("image") as flag,
        JsonLines(Path(summary.answers), append=True) as lines,
    ):
        images = watch_folder(watched, but=folder, stopped=lambda: flag.asked, pause=PAUSE)
        begun = 0.0
        for file in _waited(images, stages):
            begun = begun or time.perf_counter()
            target = folder / pictures.picture_name(summary.frames, file).removesuffix(".png")
            before = stamp_of(file)
            found = answer_file(answerer, file, target, options.threshold, stages)
            if found.error or stamp_of(file) != before:
                unread[str(file)] = found  # tried again when it has changed
                continue
            unread.pop(str(file), None)
            lines.write({"frame": summary.frames, "at": _now(), **found.to_dict()})
            summary.frames += 1
            summary.seconds = time.perf_counter() - begun
            if summary.frames == options.limit:
                break
        for found in unread.values():
            if found.error:
                lines.write({"at": _now(), **found.to_dict()})
                warn(f"{found.photo}: {found.error}")
                summary.errors += 1
    return _completed(summary, stages, flag)


class _Video:
    """One source being processed."""

    def __init__(
        self, answerer: TaskModel, opened: Opened, stem: Path, options: Options, flag: StopFlag
    ) -> None:
        self._answerer, self._opened, self._options, self._flag = answerer, opened, options, flag
        name = opened.source.shown
        self._summary = Summary(name, opened.live, str(stem.with_name(f"{stem.name}.jsonl")))
        self._summary_file = stem.with_name(f"{stem.name}-summary.json")
        self._video = AnnotatedVideo(stem.with_name(f"{stem.name}-annotated.mp4"))
        self._stages, self._stop = Stages(), Event()

    def answer(self) -> Summary:
        """Process all frames; output files are complete however it ends."""
        summary, live = self._summary, self._opened.live
        frames = self._live_frames() if live else self._opened.frames()
        ahead = ReadAhead(frames, drop=live, stopped=lambda: self._flag.asked)
        if live:
            console.print(f"{summary.source}: live; Ctrl-C ends", soft_wrap=True)
        try:
            # A service that restarts keeps its records; a file is processed from its start again.
            with JsonLines(Path(summary.answers), append=live) as lines, self._video:
                self._answer_all(ahead, lines)
        except StreamLost as error:
            kept = f"{counted(summary.frames, 'frame')} predicted: {summary.answers}"
            raise StreamLost(f"{error.message}; {kept}", hint=error.hint) from error
        finally:
            self._stop.set()
            summary.dropped, summary.damaged = ahead.dropped, self._opened.damaged
            summary.codec = self._video.codec
            summary.video = str(self._video.path) if summary.codec else None
            _completed(summary, self._stages, self._flag)
            write_json(self._summary_file, asdict(summary))
        return summary

    def _answer_all(self, ahead: ReadAhead[Frame], lines: JsonLines) -> None:
        summary, begun = self._summary, 0.0
        counts = [n for n in (self._opened.frame_count, self._options.limit) if n is not None]
        with track_steps("predicting", total=min(counts, default=None)) as show:
            for frame in _waited(iter(ahead), self._stages):
                begun = begun or time.perf_counter() - frame.decode_s
                self._stages.add("decode", frame.decode_s)
                self._answer_frame(frame, lines)
                summary.frames += 1
                summary.seconds = time.perf_counter() - begun
                show(summary.frames, f"{summary.frames / summary.seconds:.1f} frames/s")
                if summary.frames == self._options.limit:
                    return
        if not summary.frames and not self._flag.asked:
            raise DataError(
                f"{summary.source}: no frame can be decoded",
                hint="check that a video player can play the file",
            )
        if not self._flag.asked and self._opened.is_cut_off:
            stated = self._opened.seconds
            of = f" of {stated:.1f} s" if stated else ""
            summary.cut_off = f"ends at {self._opened.reached:.1f} s{of}: damaged or cut off"
            warn(f"{summary.source}: {summary.cut_off}")

    def _answer_frame(self, frame: Frame, lines: JsonLines) -> None:
        """One JSON line, and one picture of the video."""
        record: dict[str, object] = {"frame": frame.index, "time": round(frame.time, 6)}
        if frame.arrived is not None:
            record["at"] = _stated(frame.arrived)
        draw: Callable[[], Image.Image] = lambda: frame.image  # noqa: E731
        try:
            found = answer_image(self._answerer, frame.image, self._options.threshold, self._stages)
            record |= found.found.to_dict()
            draw = found.draw
        except Exception as error:  # in any runtime; the next frame may be fine
            if not self._summary.frames:
                raise  # of the first frame: all others would fail too
            record["error"] = reason_of(error)
            self._summary.errors += 1
        with self._stages.measure("write"):
            lines.write(record)
            if self._options.annotate:
                self._video.write(draw(), frame.time)

    def _live_frames(self) -> Iterator[Frame]:
        """Frames of a live source over all connections, with one count and one clock."""
        summary, first, clock = self._summary, iter([self._opened]), LiveClock()

        def connect() -> Iterator[Frame]:
            if next(first, None) is None:
                damaged = self._opened.damaged
                self._opened = open_source(self._opened.source)
                self._opened.damaged = damaged
                summary.reconnects += 1
                clock.restart()
            yield from self._opened.frames()

        def broken(reason: str, pause: float) -> None:
            warn(f"{summary.source}: {reason}; next try in {pause:.0f} s")

        patience = self._options.patience
        connected = stay_connected(
            connect, name=summary.source, patience=patience, stop=self._stop, broken=broken
        )
        for index, frame in enumerate(connected):
            yield replace(frame, index=index, time=clock.time(frame.time, time.monotonic()))


def _waited(items: Iterator[Any], stages: Stages) -> Iterator[Any]:
    """The same items; the time until each came is the stage `wait`."""
    while True:
        begun = time.perf_counter()
        item = next(items, None)
        if item is None:
            return
        stages.add("wait", time.perf_counter() - begun)
        yield item


def _stated(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")


def _now() -> str:
    return _stated(datetime.now(timezone.utc))


def _completed(summary: Summary, stages: Stages, flag: StopFlag) -> Summary:
    summary.stages, summary.stopped = stages.summary(), flag.asked
    if summary.seconds:
        summary.frames_per_s = summary.frames / summary.seconds
    return summary


def _require_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--out {folder}: is a file", hint="name a folder")


def _open_model(model: Path, options: Options) -> TaskModel:
    answerer = open_task_model(model, trust_engine=options.trust_engine)
    require_threshold(answerer, options.threshold)
    classes = counted(len(answerer.classes), "class", "classes")
    console.print(f"{answerer.task} with {answerer.session.runtime}, {classes}")
    return answerer
