"""Charts as inline SVG in the colors of the page."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from importlib.resources import files

import pytest

from hgkd_edge.report.charts import Line, Point, draw_lines, draw_points
from hgkd_edge.report.svg import INK, SERIES


def lines(*drawn: Line) -> str:
    return str(draw_lines(drawn, unit="loss", label="loss over the updates"))


def points(*drawn: Point) -> str:
    return str(draw_points(drawn, unit="top-1, %", label="top-1 against latency"))


def labels(svg: str) -> dict[str, tuple[float, float]]:
    found = re.findall(r'<text x="([-.\d]+)" y="([-.\d]+)"[^>]*>([a-e])</text>', svg)
    return {text: (float(x), float(y)) for x, y, text in found}


def test_every_color_of_a_chart_is_in_the_style_sheet_and_no_other_color_is_drawn() -> None:
    every = [Line([0, 1], [0, i], color=i) for i in range(SERIES + 1)]
    svg = lines(*every) + points(Point(1, 2, "1", 3, front=True), Point(2, 1, "2", 4))
    sheet = (files("hgkd_edge.report") / "templates" / "report.css").read_text(encoding="utf-8")

    used = {name for group in re.findall(r'class="([^"]*)"', svg) for name in group.split()}
    assert used >= {f"stroke-series{i}" for i in range(SERIES)}
    assert all(f".{name} " in sheet or f".{name}," in sheet for name in used - {"chart"}), used
    assert not re.search("#[0-9a-f]{6}|style=|href=|url\\(", svg)
    assert set(re.findall(r"<(\w+)", svg)) == {"svg", "path", "text"}


def test_the_front_is_filled_and_joined_and_the_rest_is_hollow() -> None:
    front = [Point(1.0, 60, "1", 0, front=True), Point(2.0, 70, "2", 0, front=True)]
    behind = Point(3.0, 65, "3", 0)

    svg = points(*front, behind)
    alone = points(front[0], behind)

    assert svg.count('class="fill-series0 stroke-series0"') == 2
    assert svg.count('class="fill-ground stroke-series0"') == 1
    assert svg.count("stroke-dasharray") == 1
    assert "stroke-dasharray" not in alone


def test_labels_of_equal_points_do_not_lie_on_each_other() -> None:
    places = labels(points(*(Point(1.0, 70.0, label) for label in "abcd"), Point(9, 70, "e")))

    assert len(places) == 5
    rows = sorted(y for text, (_, y) in places.items() if text != "e")
    assert min(b - a for a, b in itertools.pairwise(rows)) > 8


@pytest.mark.parametrize(
    "draw",
    [
        lambda: points(Point(1e-300, 0, "1"), Point(1e14, 1e14, "2")),
        lambda: points(*[Point(1, 1, "1")] * 60),
        lambda: lines(Line([-1e14, 1e14], [1e14, -1e14])),
        lambda: lines(Line([5], [1e-300])),
        lambda: lines(Line([3, 1, 2], [0, 0, 0])),
    ],
)
@pytest.mark.filterwarnings("error")
def test_any_finite_figure_can_be_drawn(draw: Callable[[], str]) -> None:
    assert draw().startswith("<svg")


@pytest.mark.parametrize("color", [0, SERIES - 1, SERIES, 100])
def test_colors_repeat(color: int) -> None:
    assert f"stroke-series{color % SERIES}" in lines(Line([0, 1], [0, 1], color=color))


def test_no_two_inks_are_equal() -> None:
    assert len(set(INK.values())) == len(INK)
