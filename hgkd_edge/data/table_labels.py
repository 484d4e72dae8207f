"""Which labels the cells of a table hold: one class per image, or several labels per image.

Several labels are detected by evidence in the table. So a combination of labels does not become a
class, and a class name that contains a separator is not split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hgkd_edge.data.names import a_few
from hgkd_edge.parsing import cut

__all__ = ["TableLabels", "labels_of_cells", "labels_of_columns"]

YES, NO = {"1", "1.0", "true"}, {"0", "0.0", "false", ""}
SEPARATORS = (";", "|")
MORE_SEPARATORS = (",", " ")  # for a column with a plural name
Line = tuple[int, Sequence[str]]  # its number and cells


class TableLabels(NamedTuple):
    """The labels of a table.

    Attributes:
        labels: Names of the labels of each line.
        several: Whether a line may have several.
        remark: What was decided, in one line; '' if nothing was.
    """

    labels: list[tuple[str, ...]]
    several: bool = False
    remark: str = ""


def labels_of_columns(header: Sequence[str], lines: Sequence[Line], taken: set[int]) -> TableLabels:
    """Labels given as one column of 0 and 1 per class.

    Args:
        header: Names of all columns.
        lines: Number and cells of each line.
        taken: Columns used for something else.
    """
    marks = [
        column
        for column in range(len(header))
        if column not in taken and header[column] and _is_marked([row[column] for _, row in lines])
    ]
    if len(marks) < 2:
        return TableLabels([()] * len(lines))
    labels = [
        tuple(header[column] for column in marks if row[column].lower() in YES) for _, row in lines
    ]
    remark = f"classes are the columns {a_few([header[column] for column in marks])}"
    for (line, _), held in zip(lines, labels, strict=True):
        if len(held) > 1:
            remark += f": several labels per image (line {line}: {a_few(held)} hold 1)"
            return TableLabels(labels, True, remark + _unused(header, marks, labels))
    if all(labels):
        remark += ": each line holds one 1"
    return TableLabels(labels, False, remark)


def labels_of_cells(lines: Sequence[Line], column: int, *, plural: bool) -> TableLabels:
    """Labels given in one column.

    Args:
        lines: Number and cells of each line.
        column: The column.
        plural: Whether its name is plural.
    """
    cells = [row[column] for _, row in lines]
    if (found := _separator(cells, plural=plural)) is None:
        return TableLabels([(cell,) if cell else () for cell in cells])
    example, separator = found
    labels = [tuple(filter(None, map(str.strip, cell.split(separator)))) for cell in cells]
    shown = "spaces" if separator == " " else f"'{separator}'"
    remark = (
        f"several labels per image, separated by {shown} "
        f"(line {lines[example][0]}: '{cut(cells[example])}')"
    )
    return TableLabels(labels, True, remark)


def _separator(cells: Sequence[str], *, plural: bool) -> tuple[int, str] | None:
    """The position of a cell that holds several labels, and their separator; None if none does.

    A cell holds several labels if one of its parts is a separate label elsewhere, or appears in
    another position: `a;b` and `b;c`, or `a;b` and `a`. Names such as `fruit|apple` and
    `fruit|pear` are no such evidence.
    """
    distinct = dict.fromkeys(cells)
    for separator in (*SEPARATORS, *(MORE_SEPARATORS if plural else ())):
        places: dict[str, set[int]] = {}
        split = [[part.strip() for part in cell.split(separator)] for cell in distinct]
        for parts in split:
            for place, part in enumerate(parts):
                places.setdefault(part, set()).add(place if len(parts) > 1 else -1)
        for cell, parts in zip(distinct, split, strict=True):
            if len(parts) > 1 and any(len(places[part]) > 1 for part in parts if part):
                return list(cells).index(cell), separator
    return None


def _unused(header: Sequence[str], marks: list[int], labels: list[tuple[str, ...]]) -> str:
    """The columns without a single 1, which are no classes."""
    held = {name for names in labels for name in names}
    unused = [header[column] for column in marks if header[column] not in held]
    return f"; no line holds 1 in {a_few(unused)}" if unused else ""


def _is_marked(cells: Sequence[str]) -> bool:
    values = {cell.lower() for cell in cells}
    return values <= YES | NO and values != {""}
