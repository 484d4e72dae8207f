"""Untrusted text on the console: it is printed without controlling the terminal."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hgkd_edge import console
from hgkd_edge.cells import counted
from hgkd_edge.console import make_console, printable, track_steps

HOSTILE = {
    "title": "a\x1b]0;owned\x07b",
    "cleared screen": "a\x1b[2J\x1b[Hb",
    "eight-bit controls": "a\x9b2Jb",
    "a line that says verified": "a\nverified: all outputs agree\r\x1b[1Ab",
    "other line ends": "a\u2028verified\x85verified\x0bb",
    "reordered": "a\u202everified\u2066b",
    "a link": "a\x1b]8;;http://a.example\x1b\\verified\x1b]8;;\x1b\\b",
    "an eight-bit title": "a\x9d0;owned\x9cb",
    "a device's own string": "a\x90verified\x9cb\x1bPverified\x1b\\",
    "marks of direction": "a\u200fb\u061c\u200e",
    "nothing to see": "ma\u200bin\ufeff.on\u00adnx\u2060\u180e",
    "hidden words": "a" + "".join(chr(0xE0000 + ord(c)) for c in "verified") + "\ufff9b",
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


def test_what_cannot_be_seen_does_not_make_two_names_look_alike() -> None:
    unseen = "\xad\u061c\u180e\u200b\u200e\u200f\u2060\u2064\u206a\ufeff\ufff9\U000e0001\U000e0061"

    for character in unseen:
        assert printable(f"mai{character}n") == "mai\N{REPLACEMENT CHARACTER}n", ascii(character)


def test_the_joiners_of_scripts_and_emoji_are_kept() -> None:
    for text in ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f469\u200d\U0001f4bb"):
        assert printable(text) == text


def test_printable_keeps_the_length_so_that_styles_fit() -> None:
    for text in HOSTILE.values():
        assert len(printable(text)) == len(text)
        assert "\N{REPLACEMENT CHARACTER}" in printable(text) or printable(text).isprintable()


def test_an_error_about_a_hostile_file_name_is_one_line(tmp_path: Path) -> None:
    name = "no\x1b[2J\nverified: all outputs agree.onnx"

    done = subprocess.run(
        [sys.executable, "-m", "hgkd_edge", "bench", str(tmp_path / name)],
        capture_output=True,
        text=True,
    )

    error, hint = done.stderr.splitlines()
    assert done.returncode == 2
    assert error.startswith("error: no model at ")
    assert hint.startswith("hint: ")
    assert "\x1b" not in done.stderr


def test_in_a_notebook_progress_is_a_bar_only_where_widgets_can_draw_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console, "console", make_console(file=io.StringIO(), force_jupyter=True))

    for spec, bar in ((None, False), (object(), True)):
        monkeypatch.setattr(console.importlib.util, "find_spec", lambda name, spec=spec: spec)
        assert console._shows_bars() is bar


@pytest.mark.parametrize(
    ("done", "step", "left"), [(0, 25, "0:05:00 left"), (50, 75, "0:01:40 left"), (0, 100, "")]
)
def test_without_a_terminal_progress_says_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch, done: int, step: int, left: str
) -> None:
    out, now = io.StringIO(), [0.0]
    monkeypatch.setattr(console, "console", make_console(file=out, width=200))
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])

    with track_steps("indexing", total=100, done=done) as show:
        now[0] = 100.0
        show(step, "")

    assert out.getvalue().strip() == f"indexing {step}/100    {left}".strip()


def test_counts_are_in_the_right_number() -> None:
    assert counted(1, "image") == "1 image"
    assert counted(1628, "image") == "1,628 images"
    assert counted(0, "class", "classes") == "0 classes"
