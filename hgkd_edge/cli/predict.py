"""The command `predict`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hgkd_edge.cli.failures import STOPPED
from hgkd_edge.cli.options import AsJson, TrustEngine, require_only
from hgkd_edge.cli.output import show

if TYPE_CHECKING:
    from hgkd_edge.api.result import Result
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


_OF_ALL = ("model", "sources", "out", "threshold", "trust_engine", "as_json")


def predict(
    context: typer.Context,
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
    from hgkd_edge.video.sources import find_source

    videos = [source for text in sources if (source := find_source(text)) is not None]
    if not (watch or videos):
        require_only(context, "on images", *_OF_ALL, "save_labels")
        from hgkd_edge.api.model import load_model

        opened = load_model(model, trust_engine=trust_engine)
        found = opened.predict(sources, out=out, threshold=threshold, save_labels=save_labels)
        lines = [*map(str, found), f"pictures and JSON: {out}"]
        show(found.records(), as_json, lambda: lines)
        return
    _require_possible(sources, videos, watch=watch, save_labels=save_labels)
    from hgkd_edge.api import streaming

    if watch:
        require_only(context, "with --watch", *_OF_ALL, "watch", "frames")
        made = [
            streaming.watch(
                model,
                sources[0],
                out,
                threshold=threshold,
                limit=frames,
                trust_engine=trust_engine,
            )
        ]
    else:
        made = streaming.predict_video(
            model,
            sources,
            out,
            threshold=threshold,
            limit=frames,
            annotate=video,
            patience=reconnect,
            trust_engine=trust_engine,
        )
    _show_videos(made, as_json=as_json)


def _require_possible(
    sources: Sequence[str], videos: Sequence[Source], *, watch: bool, save_labels: str
) -> None:
    """Refuse what videos and watched folders cannot do.

    Raises:
        DataError: Names the option or the input.
    """
    from hgkd_edge.errors import DataError

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


def _show_videos(made: Sequence[Result], *, as_json: bool) -> None:
    """Show the results of videos, or of a watched folder."""
    show(
        [one.to_dict() for one in made],
        as_json,
        lambda: chain.from_iterable(one.lines() for one in made),
    )
    if any(one["stopped"] and not one["live"] for one in made):
        raise typer.Exit(STOPPED)
