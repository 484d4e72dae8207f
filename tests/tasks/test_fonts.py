"""Class names of any script in pictures: drawn where a font has them, else escaped and reported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from hgkd_edge.tasks import fonts
from hgkd_edge.tasks.answers import Detection, Label
from hgkd_edge.tasks.pictures import draw_boxes, draw_confusion, draw_labels

DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # all but Chinese
CHINESE, RUSSIAN, ARMENIAN, LATIN = "身份证", "кошка", "կատու", "café"


@pytest.fixture(params=["installed", "none"])
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Fonts other than Pillow's: DejaVu, or none."""
    there = request.param == "installed"
    caches = (fonts._files, fonts._file_with, fonts._report)
    monkeypatch.setattr(fonts, "_folders", lambda: iter([DEJAVU] if there else []))
    for cache in caches:
        cache.cache_clear()
    yield there
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("text", [CHINESE, RUSSIAN, ARMENIAN, LATIN, f"{LATIN} {RUSSIAN}", "cat"])
def test_text_is_drawn_as_it_is_where_a_font_has_it_and_else_escaped(
    installed: bool, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    shown, font = fonts.drawable(text, 16)

    has_it = text.isascii() or (installed and text != CHINESE)
    assert (shown == text) == has_it
    missing = bytes(font.getmask(fonts.ABSENT))
    assert all(bytes(font.getmask(c)) != missing for c in shown if c != " "), "no tofu"
    printed = capfd.readouterr().err
    assert ("no installed font can draw" in printed and text in printed) == (not has_it)


def test_what_is_missing_is_reported_once(
    installed: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        assert fonts.drawable(CHINESE, 16)[0] == "\\u8eab\\u4efd\\u8bc1"

    assert capfd.readouterr().err.count("no installed font") == 1


def test_names_that_differ_look_different_in_every_picture(installed: bool, tmp_path: Path) -> None:
    photo = Image.new("RGB", (200, 100))
    other = "猫狗兔"  # as many tofu boxes

    for names in ((CHINESE, other), (RUSSIAN, "мышка")):
        labels = [np.asarray(draw_labels(photo, [Label(name, 1.0)])) for name in names]
        boxes = [
            np.asarray(draw_boxes(photo, [Detection(name, 0.5, (9, 40, 90, 90))], [name]))
            for name in names
        ]
        drawn = [
            draw_confusion(np.eye(2, dtype=int), [name, "b"], tmp_path / f"{i}.png").read_bytes()
            for i, name in enumerate(names)
        ]

        assert (labels[0] != labels[1]).any()
        assert (boxes[0] != boxes[1]).any()
        assert drawn[0] != drawn[1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [CHINESE, RUSSIAN, "$x$", "a$b", "100 $", r"\frac"])
def test_a_confusion_matrix_takes_any_name(installed: bool, tmp_path: Path, name: str) -> None:
    """Matplotlib warns about missing glyphs, and reads text between dollar signs as formulas."""
    draw_confusion(np.eye(2, dtype=int), [name, "b"], tmp_path / "a.png")
