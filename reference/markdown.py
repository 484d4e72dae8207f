"""Pieces of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown, `|` and line ends in them are escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines) + "\n"


def code(text: object) -> str:
    """`text` as code, or nothing if it is empty."""
    return f"`{text}`" if text not in ("", None) else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
