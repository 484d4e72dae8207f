"""`check_data`: what a data set holds, before it is trained on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from hgkd_edge.api.result import Result
from hgkd_edge.cells import counted
from hgkd_edge.recipe_sections import DataConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hgkd_edge.survey import Survey

__all__ = ["check_data"]

_CLASSES = 30  # rows of the table
_SKIPPED = 5  # reasons shown


def check_data(
    path: str | os.PathLike[str],
    *,
    draw: int = 0,
    out: str | os.PathLike[str] = "data-pictures",
) -> Result:
    """Inspect a data set: format, classes, and what is skipped and why.

    Args:
        path: A folder of images, a data.yaml, or a CSV file.
        draw: Draw this many annotated images as PNG files.
        out: Folder for them.

    Returns:
        `format`, `tasks` that it can teach, `classes`, counts by split in `splits`, `remarks`, and
        the files of the `pictures`.

    Raises:
        DataError: It holds no usable images.
    """
    from hgkd_edge.survey import draw_survey, survey  # loads torch

    config = DataConfig(path=Path(path))
    found = survey(config)
    pictures = draw_survey(config, draw, Path(out)) if draw else []
    record = {**asdict(found), "pictures": [str(file) for file in pictures]}
    return Result(record, lambda: _lines(found, pictures, Path(out), drawn=draw > 0))


def _lines(
    found: Survey, pictures: list[Path], out: Path, *, drawn: bool
) -> Iterator[RenderableType]:
    yield f"{found.path}: {found.format}, {counted(len(found.classes), 'class', 'classes')}"
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


def _table(found: Survey) -> Table:
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
