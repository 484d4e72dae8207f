"""What a command found: plain fields, and how a terminal or a notebook shows them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hgkd_edge.console import make_console

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["Result", "as_html", "as_text"]

COLUMNS = 100  # of tables in a notebook, in characters
PAGE = '<pre style="overflow-x: auto; line-height: 1.3">{code}</pre>'


class Result(Mapping[str, Any]):
    """A command's result, a mapping of the fields that `--json` prints.

    Shown in a notebook or printed, it is the table of the terminal.

    Args:
        record: The fields.
        view: Makes the lines and tables that show it.
    """

    def __init__(
        self, record: Mapping[str, Any], view: Callable[[], Iterable[RenderableType]]
    ) -> None:
        self._record, self._view = dict(record), view

    def __getitem__(self, key: str) -> Any:
        return self._record[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._record)

    def __len__(self) -> int:
        return len(self._record)

    def to_dict(self) -> dict[str, Any]:
        """The fields as a new dict."""
        return dict(self._record)

    def lines(self) -> list[RenderableType]:
        """Lines and tables for a `rich` console."""
        return list(self._view())

    def __repr__(self) -> str:
        return as_text(self.lines())

    def _repr_html_(self) -> str:
        return as_html(self.lines())


def as_text(lines: Iterable[RenderableType]) -> str:
    """Lines and tables as plain text."""
    return _printed(lines).export_text().rstrip("\n")


def as_html(lines: Iterable[RenderableType]) -> str:
    """Lines and tables as HTML for a notebook; every text in it is escaped."""
    return _printed(lines).export_html(inline_styles=True, code_format=PAGE)


def _printed(lines: Iterable[RenderableType]) -> Console:
    from rich.text import Text

    console = make_console(record=True, file=io.StringIO(), width=COLUMNS, force_jupyter=False)
    for line in lines:
        console.print(line, soft_wrap=isinstance(line, (str, Text)))
    return console
