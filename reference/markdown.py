"""Pieces of Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown, line ends and `|` in them are escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines) + "\n"


def code(text: object) -> str:
    """`text` as code, or nothing if it is empty."""
    return f"`{text}`" if text not in ("", None) else ""


def _cell(text: str) -> str:
    # In code a `|` is literal, and so would be a backslash before it.
    parts = re.split("(`[^`]*`)", " ".join(text.split()))
    return "".join(one if one.startswith("`") else one.replace("|", "\\|") for one in parts)
