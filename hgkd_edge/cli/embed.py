"""The command `embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hgkd_edge.cli.options import AsJson, Images
from hgkd_edge.cli.output import show_result


def embed(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Run folder or name, or a backbone's .onnx.")
    ],
    images: Images,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FILE", help="File for the features: .npz or .parquet."
        ),
    ] = Path("features.npz"),
    neighbors: Annotated[
        bool, typer.Option("--neighbors", help="Draw images with their nearest neighbors.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Save a backbone's features of images.

    For search, deduplication and active learning.

    Example: hgkd-edge embed runs/demo photos/ --out features.npz --neighbors
    """
    from hgkd_edge.api.embedding import embed as verb

    # Not `with_suffix`, which fails for a folder such as `/`, before `out` is checked.
    picture = out.parent / f"{out.stem}.png" if neighbors else None
    show_result(verb(model, images, out, neighbors=picture), as_json)
