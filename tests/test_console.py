"""Text is shown as it is: brackets in names, paths and hints are never markup."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from hgkd_edge.console import make_console
from hgkd_edge.doctor import Capability
from hgkd_edge.tables import doctor_table, score_table, task_table

PACKAGE = Path(__file__).parent.parent / "hgkd_edge"
HOSTILE = ["[bold]x[/]", r"a\[b]", "[link=http://x]y[/link]", ":warning:", "[/]", "x[0]"]


def shown(renderable: object, *, terminal: bool = False) -> str:
    stream = io.StringIO()
    make_console(file=stream, width=120, force_terminal=terminal).print(renderable)
    return stream.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_text_reaches_the_screen_letter_by_letter(text: str) -> None:
    result = {"task": text, "photos": 3, "split": text, "scores": {"per_class": {text: 0.5}}}
    scores = {"knn": 0.5, "linear_probe": 0.5}
    features = {"photos": {text: 3}, "split": text, "distilled": scores, "untrained": scores}

    assert text in shown(text)
    assert shown(task_table(result)).count(text) == 3
    assert text in shown(score_table({**features, "majority": 0.1}))


@pytest.mark.parametrize("terminal", [True, False])
def test_the_doctor_shows_commands_that_can_be_pasted_and_no_markup(terminal: bool) -> None:
    hint = 'pip install "hgkd-edge[train]"'
    text = shown(
        doctor_table([Capability("a", True, "here"), Capability("b", False, "", hint)]),
        terminal=terminal,
    )

    assert hint in text
    assert "\\" not in text
    assert "[green]" not in text
    assert "[yellow]" not in text
    assert ("\x1b[32m" in text) == terminal, "yes is green where there are colors"


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: f.name)
def test_only_one_place_makes_consoles_and_none_writes_markup(file: Path) -> None:
    code = file.read_text()

    assert not re.search(r"rich\.markup|from_markup|\[/\]|\[(bold|red|green|yellow)\]", code)
    assert file.name == "console.py" or not re.search(r"(?<!\w)Console\(", code)
    assert not re.search(r"TextColumn\((?!.*markup=False)[^)]*\{", code)
