"""Foreign text at the door of the console: it is shown, and steers no terminal."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hgkd_edge.console import make_console, printable

HOSTILE = {
    "title": "a\x1b]0;owned\x07b",
    "cleared screen": "a\x1b[2J\x1b[Hb",
    "eight-bit controls": "a\x9b2Jb",
    "a line that says verified": "a\nverified: all outputs agree\r\x1b[1Ab",
    "other line ends": "a\u2028verified\x85verified\x0bb",
    "reordered": "a\u202everified\u2066b",
}


def table_of(text: str) -> Table:
    table = Table(text, title=text)
    table.add_row(text)
    table.add_row(Text(text, style="red"))
    return table


def printed(renderable: RenderableType, **options: object) -> str:
    out = io.StringIO()
    make_console(file=out, width=200, **options).print(renderable, soft_wrap=False)
    return out.getvalue()


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("wrap", [str, Text, table_of, lambda text: Group(text, Text(text))])
def test_foreign_text_steers_no_terminal_and_adds_no_line(text: str, wrap: object) -> None:
    shown = printed(wrap(text))  # type: ignore[operator]
    expected = printed(wrap("a b"))  # type: ignore[operator]

    assert not {c for c in shown if not c.isprintable()} - {"\n"}
    assert shown.count("\n") == expected.count("\n")
    assert not any(line.lstrip("│┃ ").startswith("verified") for line in shown.splitlines())


def test_our_own_colors_and_other_scripts_are_kept() -> None:
    shown = printed(
        Text.assemble(("warning:", "yellow"), " 猫 кот Å \x1b[31m"), force_terminal=True
    )

    assert shown.startswith("\x1b[33mwarning:\x1b[0m 猫 кот Å ")
    assert "\x1b[31m" not in shown


def test_printable_keeps_the_length_so_that_styles_fit() -> None:
    for text in HOSTILE.values():
        assert len(printable(text)) == len(text)
        assert printable(text).isprintable() or "\N{REPLACEMENT CHARACTER}" in printable(text)


def test_an_error_about_a_hostile_file_name_is_one_line(tmp_path: Path) -> None:
    name = "no\x1b[2J\nverified: all outputs agree.onnx"

    done = subprocess.run(
        [sys.executable, "-m", "hgkd_edge.cli", "bench", str(tmp_path / name)],
        capture_output=True,
        text=True,
    )

    error, hint = done.stderr.splitlines()
    assert done.returncode == 2
    assert error.startswith("error: no model at ")
    assert hint.startswith("hint: ")
    assert "\x1b" not in done.stderr
