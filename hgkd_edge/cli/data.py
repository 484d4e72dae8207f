"""The command `data`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hgkd_edge.cli.options import AsJson
from hgkd_edge.cli.output import show

if TYPE_CHECKING:
    from hgkd_edge.survey import Survey

_CLASSES = 30  # rows of the table
_SKIPPED = 5  # reasons shown


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
    from hgkd_edge.recipe_sections import DataConfig
    from hgkd_edge.survey import draw_survey, survey

    config = DataConfig(path=path)
    found = survey(config)
    pictures = draw_survey(config, draw, out) if draw else []
    result = {**asdict(found), "pictures": [str(file) for file in pictures]}
    show(result, as_json, lambda: _lines(found, pictures, out, drawn=draw > 0))


def _lines(found: Survey, pictures: list[Path], out: Path, *, drawn: bool) -> Iterator[Any]:
    yield f"{found.path}: {found.format}, {len(found.classes)} classes"
    yield _table(found)
    for split, part in found.splits.items():
        shown = part.skipped[:_SKIPPED]
        if shown:
            yield f"skipped in {split}: {len(part.skipped)}"
            yield from (f"  {where}: {why}" for where, why in shown)
        if more := len(part.skipped) - len(shown):
            yield f"  and {more} more; --json lists all"
    yield from found.remarks
    if drawn:
        yield f"pictures: {len(pictures)} in {out}" if pictures else "pictures: nothing to draw"
    for task in found.tasks:
        yield f"next: hgkd-edge finetune --task {task} --data {shlex.quote(str(found.path))}"


def _table(found: Survey) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("class" if found.classes else "count")
    for split in found.splits:
        table.add_column(split, justify="right")
    parts = list(found.splits.values())
    for name in found.classes[:_CLASSES]:
        counts = [
            str((part.objects or {}).get(name, "-" if part.objects is None else 0))
            for part in parts
        ]
        table.add_row(Text(name), *counts)
    if (more := len(found.classes) - _CLASSES) > 0:
        table.add_row(f"and {more} more", *[""] * len(parts))
    if found.classes:
        table.add_section()
    table.add_row("images", *[f"{part.images:,}" for part in parts])
    nothing = "without a label" if "multilabel" in found.tasks else "without objects"
    table.add_row(nothing, *[f"{part.empty:,}" for part in parts])
    if any(part.outlines for part in parts):
        table.add_row("outlines", *[f"{part.outlines:,}" for part in parts])
    table.add_row("skipped", *[f"{len(part.skipped):,}" for part in parts])
    return table
