"""Which labels the columns of a table hold: one class per image, or several, which are refused.

A classification network answers one class per image. Several labels per image are detected by
evidence in the table. So a combination of labels does not become a class, and a class name that
contains a separator is not split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hgkd_edge.data.names import a_few

__all__ = ["ColumnLabels", "labels_of_columns", "several_labels"]

YES, NO = {"1", "1.0", "true"}, {"0", "0.0", "false", ""}
SEPARATORS = (";", "|")
MORE_SEPARATORS = (",", " ")  # for a column with a plural name


class ColumnLabels(NamedTuple):
    """Labels given as columns of 0 and 1.

    Attributes:
        names: One per line; empty if there are no such columns, or if `several` is set.
        remark: What was decided, in one line.
        several: The first line with no label or several, and what it holds.
    """

    names: list[str]
    remark: str = ""
    several: str = ""


def labels_of_columns(
    header: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]], taken: set[int]
) -> ColumnLabels:
    """Classes given as columns, if every line holds a single 1.

    Args:
        header: Names of all columns.
        rows: Number and cells of each line.
        taken: Columns used for something else.
    """
    marks = [
        column
        for column in range(len(header))
        if column not in taken and header[column] and _is_marked([row[column] for _, row in rows])
    ]
    if len(marks) < 2:
        return ColumnLabels([])
    columns = a_few([header[column] for column in marks])
    names = []
    for line, row in rows:
        found = [header[column] for column in marks if row[column].lower() in YES]
        if len(found) != 1:
            held = a_few(found) if found else "none"
            return ColumnLabels([], several=f"line {line}: of the columns {columns}, {held} hold 1")
        names += found
    return ColumnLabels(names, f"classes are the columns {columns}: each line holds one 1")


def several_labels(labels: Sequence[str], *, plural: bool) -> int | None:
    """The first label that holds several labels, by its position; None if there is none.

    A cell holds several labels if one of its parts is a separate label elsewhere, or appears in
    another position: `a;b` and `b;c`, or `a;b` and `a`. Names such as `fruit|apple` and
    `fruit|pear` are no such evidence.

    Args:
        labels: Labels of all lines.
        plural: Whether the column's name is plural.
    """
    distinct = dict.fromkeys(labels)
    for separator in (*SEPARATORS, *(MORE_SEPARATORS if plural else ())):
        places: dict[str, set[int]] = {}
        cells = [[part.strip() for part in label.split(separator)] for label in distinct]
        for parts in cells:
            for place, part in enumerate(parts):
                places.setdefault(part, set()).add(place if len(parts) > 1 else -1)
        for label, parts in zip(distinct, cells, strict=True):
            if len(parts) > 1 and any(len(places[part]) > 1 for part in parts if part):
                return list(labels).index(label)
    return None


def _is_marked(cells: Sequence[str]) -> bool:
    values = {cell.lower() for cell in cells}
    return values <= YES | NO and values != {""}
