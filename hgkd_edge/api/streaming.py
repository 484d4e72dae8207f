"""`predict_video` and `watch`: videos, cameras, streams, and folders that are being filled."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from hgkd_edge.api.result import Result
from hgkd_edge.cells import counted
from hgkd_edge.errors import DataError
from hgkd_edge.tables import stage_table
from hgkd_edge.video.sources import find_source

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hgkd_edge.video.predict import Summary

__all__ = ["predict_video", "video_lines", "watch"]

AnyPath = str | os.PathLike[str]


def predict_video(
    model: AnyPath,
    sources: AnyPath | Iterable[AnyPath],
    out: AnyPath = "predictions",
    *,
    threshold: float | None = None,
    limit: int | None = None,
    annotate: bool = True,
    patience: float = 60.0,
    trust_engine: bool = False,
) -> list[Result]:
    """Predict every frame of video files, or as many as possible of one camera or stream.

    A camera or stream ends by Ctrl-C, SIGTERM or `limit`.

    Args:
        model: What `load_model` takes.
        sources: Video files, or one camera (`0`, `/dev/video0`) or URL.
        out: Folder for the predictions (JSON lines), annotated videos and summaries.
        threshold: Lowest score of a box or a label; None is the model's own.
        limit: Frames at most.
        annotate: Write an annotated copy of each video.
        patience: Seconds to wait for a camera or stream that broke.
        trust_engine: Load an engine although it was not built on this machine.

    Returns:
        For each source: `frames`, `errors`, `frames_per_s`, `stages`, `answers` (the JSON lines),
        `video`, and whether it was `stopped`.

    Raises:
        RunError: The model cannot be opened.
        DataError: A source cannot be opened, or none of its frames can be processed.
        ExportError: `out` cannot be written to.
        StreamLost: A camera or stream broke and did not come back.
        MissingPackageError: PyAV, or the model's runtime, is not installed.
    """
    from hgkd_edge.video.predict import Options, predict_videos

    listed = [sources] if isinstance(sources, (str, os.PathLike)) else sources
    found = []
    for one in listed:
        name = os.fspath(one)
        source = find_source(name)
        if source is None:
            raise DataError(f"{name}: not a video, camera or URL", hint="images: Model.predict")
        found.append(source)
    if not found:
        raise DataError("no videos to predict", hint="name a video file, camera or URL")
    options = Options(
        threshold=threshold,
        trust_engine=trust_engine,
        limit=limit,
        annotate=annotate,
        patience=patience,
    )
    return [_result(made) for made in predict_videos(Path(model), found, Path(out), options)]


def watch(
    model: AnyPath,
    folder: AnyPath,
    out: AnyPath = "predictions",
    *,
    threshold: float | None = None,
    limit: int | None = None,
    trust_engine: bool = False,
) -> Result:
    """Predict images as they appear in a folder, until Ctrl-C, SIGTERM or `limit`.

    Args:
        model: What `load_model` takes.
        folder: The folder to watch.
        out: Folder for pictures and predictions (JSON lines).
        threshold: Lowest score of a box or a label; None is the model's own.
        limit: Images at most.
        trust_engine: Load an engine although it was not built on this machine.

    Returns:
        As `predict_video`, for the folder.

    Raises:
        RunError: The model cannot be opened.
        DataError: There is no such folder.
        ExportError: `out` cannot be written to.
        MissingPackageError: The model's runtime is not installed.
    """
    from hgkd_edge.video.predict import Options, predict_folder

    options = Options(threshold=threshold, trust_engine=trust_engine, limit=limit)
    made = predict_folder(Path(model), Path(folder), Path(out), options)
    return _result(made, "image")


def _result(made: Summary, unit: str = "frame") -> Result:
    return Result(asdict(made), lambda: video_lines(made, unit))


def video_lines(made: Summary, unit: str = "frame") -> Iterator[RenderableType]:
    """What became of one video, camera, stream or watched folder."""
    stopped = "stopped after " if made.stopped and not made.live else ""
    yield (
        f"{made.source}: {stopped}{counted(made.frames, unit)} in {made.seconds:.1f} s, "
        f"{made.frames_per_s:.1f} {unit}s/s from source to prediction"
    )
    if made.stages:
        yield stage_table(made.stages)
    if made.dropped:
        yield f"dropped: {counted(made.dropped, 'frame')}, because newer ones were available"
    if made.damaged:
        yield f"damaged: {counted(made.damaged, 'packet')} that could not be decoded"
    if made.reconnects:
        yield f"reconnects: {made.reconnects}"
    if made.errors:
        yield f"errors: {counted(made.errors, unit)} without a prediction"
    yield f"predictions, one JSON record per line: {made.answers}"
    if made.video:
        yield f"annotated video ({made.codec}): {made.video}"
