"""The command `predict`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hgkd_edge.cli.failures import STOPPED
from hgkd_edge.cli.options import AsJson, TrustEngine
from hgkd_edge.cli.output import show

if TYPE_CHECKING:
    from hgkd_edge.video.predict import Summary
    from hgkd_edge.video.sources import Source


Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGES|VIDEO",
        help="Image files, folders of them, video files, a camera (0, /dev/video0) or a URL.",
    ),
]


ModelFile = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="Run folder or name, model.safetensors, .onnx, .xml or .plan."
    ),
]
Folder = Annotated[
    Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for pictures and JSON.")
]
Threshold = Annotated[
    float | None,
    typer.Option(
        metavar="SCORE",
        min=0,
        max=1,
        help="Lowest score of a box or a label [default: 0.4; of labels, the model's own].",
    ),
]
SaveLabels = Annotated[
    str,
    typer.Option(
        metavar="FORMAT",
        help="Also save the predictions as a data set: yolo, coco, voc, folders or csv.",
    ),
]
Watch = Annotated[bool, typer.Option("--watch", help="Predict images as they appear in a folder.")]
Frames = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Videos and --watch: stop after this many."),
]
WriteVideo = Annotated[
    bool, typer.Option("--video/--no-video", help="Write an annotated copy of a video.")
]
Reconnect = Annotated[
    float,
    typer.Option(metavar="SECONDS", min=0, help="Wait this long for a stream that broke."),
]


def predict(
    model: ModelFile,
    sources: Sources,
    out: Folder = Path("predictions"),
    threshold: Threshold = None,
    save_labels: SaveLabels = "",
    watch: Watch = False,
    frames: Frames = None,
    video: WriteVideo = True,
    reconnect: Reconnect = 60.0,
    trust_engine: TrustEngine = False,
    as_json: AsJson = False,
) -> None:
    """Classify, segment or detect in images, videos and streams.

    Example: hgkd-edge predict runs/demo/export/demo.fp32.onnx photos/

    Example: hgkd-edge predict runs/demo rtsp://camera/stream
    """
    from hgkd_edge.errors import DataError
    from hgkd_edge.video.sources import find_source

    chosen: dict[str, Any] = {} if threshold is None else {"threshold": threshold}
    videos = [source for text in sources if (source := find_source(text)) is not None]
    if not (watch or videos):
        from hgkd_edge.api.model import load_model

        opened = load_model(model, trust_engine=trust_engine)
        found = opened.predict(sources, out=out, save_labels=save_labels, **chosen)
        lines = [*map(str, found), f"pictures and JSON: {out}"]
        show(found.records(), as_json, lambda: lines)
        return
    if save_labels:
        raise DataError(
            "--save-labels: writes data sets of image files only",
            hint="extract frames first: ffmpeg -i VIDEO frames/%05d.png",
        )
    if watch and (videos or len(sources) > 1):
        raise DataError("--watch: watches one folder", hint="name one folder of images")
    if videos and len(videos) < len(sources):
        raise DataError(
            f"{videos[0].shown}: videos and images need separate calls",
            hint="call predict once for each",
        )
    chosen |= {"limit": frames, "annotate": video, "patience": reconnect}
    _predict_video(model, videos, Path(sources[0]), out, as_json, chosen)


def _predict_video(
    model: Path,
    videos: Sequence[Source],
    folder: Path,
    out: Path,
    as_json: bool,
    chosen: dict[str, Any],
) -> None:
    """Answer videos, or watch a folder where there are none."""
    from dataclasses import asdict

    from hgkd_edge.video.predict import Options, predict_folder, predict_videos

    options = Options(**chosen)
    if videos:
        made = predict_videos(model, videos, out, options)
    else:
        made = [predict_folder(model, folder, out, options)]
    show([asdict(one) for one in made], as_json, lambda: chain(*map(_video_lines, made)))
    if any(one.stopped and not one.live for one in made):
        raise typer.Exit(STOPPED)


def _video_lines(made: Summary) -> Iterator[Any]:
    """What became of one video, camera, stream or watched folder."""
    from hgkd_edge.tables import stage_table

    stopped = "stopped after " if made.stopped and not made.live else ""
    yield (
        f"{made.source}: {stopped}{made.frames} frames in {made.seconds:.1f} s, "
        f"{made.frames_per_s:.1f} frames/s from source to prediction"
    )
    if made.stages:
        yield stage_table(made.stages)
    if made.dropped:
        yield f"dropped: {made.dropped} frames, because newer ones were available"
    if made.damaged:
        yield f"damaged: {made.damaged} packets that could not be decoded"
    if made.reconnects:
        yield f"reconnects: {made.reconnects}"
    if made.errors:
        yield f"errors: {made.errors} frames without a prediction"
    yield f"predictions, one JSON record per line: {made.answers}"
    if made.video:
        yield f"annotated video ({made.codec}): {made.video}"
