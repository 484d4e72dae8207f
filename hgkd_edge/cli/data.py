"""The command `data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hgkd_edge.cli.options import AsJson
from hgkd_edge.cli.output import next_lines, show_result
from hgkd_edge.errors import DataError


def data(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder of images, data.yaml, or CSV file.")
    ],
    draw: Annotated[
        int, typer.Option(metavar="N", min=0, help="Draw this many annotated images as PNG files.")
    ] = 0,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the pictures.")
    ] = Path("data-pictures"),
    as_json: AsJson = False,
) -> None:
    """Check a data set: format, classes, and what is skipped and why.

    Example: hgkd-edge data photos --draw 20
    """
    if not path.expanduser().exists():  # before torch is loaded, which takes seconds
        raise DataError(f"'{path}': no such file or folder", hint="hgkd-edge data --help")

    from hgkd_edge.api.checking import check_data

    result = check_data(path, draw=draw, out=out)
    tasks = [f"finetune --task {task} --data" for task in result["tasks"]]
    show_result(result, as_json, *next_lines(str(path), *tasks))
