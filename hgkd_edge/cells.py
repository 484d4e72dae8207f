"""Counts in words, and names and figures in the cells of terminal tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from hgkd_edge.console import printable

__all__ = ["Name", "counted", "milliseconds", "name_table", "rate"]

_LONG_PART = 24  # of a name: longer parts are shortened instead of widening the column


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 image`, `1,628 images`.

    Args:
        number: How many.
        noun: Of what, in the singular.
        plural: Its plural, if it is not the noun with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def milliseconds(value: float) -> str:
    """Three significant digits, never in exponents: 0.0123, 4.56, 123, 4567."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def rate(images_per_s: float) -> str:
    """Throughput with about three digits."""
    return f"{images_per_s:.1f}" if images_per_s < 100 else f"{images_per_s:.0f}"


def name_table(names: Sequence[str], text: str, *figures: str) -> Table:
    """A table of columns of names, one of short text, and figures, which are never broken."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, ratio=1 if name != "runner" else None)
    table.add_column(text, no_wrap=True)
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table


@dataclass(frozen=True)
class Name:
    """A table cell that holds a name: broken after `-`, `_`, `.`, `/` or a space, never elsewhere.

    A part that is longer than its column is shortened in the middle.
    """

    text: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        longest = max(map(cell_len, self._parts()), default=1)
        return Measurement(min(longest, _LONG_PART, options.max_width), cell_len(self.text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [""]
        for part in self._parts():
            part = _shortened(part, options.max_width)
            if cell_len(lines[-1] + part.rstrip()) > options.max_width:
                lines.append("")
            lines[-1] += part
        yield Text("\n").join(Text(printable(line.rstrip())) for line in lines)

    def _parts(self) -> list[str]:
        return re.findall(r"[^-_./ ]*[-_./ ]+|[^-_./ ]+", printable(self.text))


def _shortened(text: str, width: int) -> str:
    """A text of at most `width` cells, with an ellipsis in the middle where it is longer."""
    if cell_len(text.rstrip()) <= width:
        return text
    head, tail = width // 2, (width - 1) // 2
    return set_cell_size(text, head).rstrip() + "\N{HORIZONTAL ELLIPSIS}" + text[len(text) - tail :]
