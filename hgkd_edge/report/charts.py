"""Charts, drawn by matplotlib where it is installed; without it, a page has their figures only.

No text of a run is drawn: names are in HTML next to the chart.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from hgkd_edge.report.svg import INK, SERIES, inline_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["MISSING", "Line", "Point", "can_draw", "draw_lines", "draw_points", "thinned"]

MISSING = 'charts need matplotlib: pip install "hgkd-edge[report]"'
POINTS = 240  # of a curve: each is the mean of its share of the updates
_WIDTH, _HEIGHT = 4.4, 2.3  # inches; one inch is 72 units of the SVG
_FONT = 10.5  # as in the style sheet, for a phone
_PINCH = 20.0  # times between the fastest and the slowest above which the axis is logarithmic


@dataclass(frozen=True)
class Line:
    """A curve: positions and values of equal number, both finite, and its color."""

    x: Sequence[float]
    y: Sequence[float]
    color: int = 0


@dataclass(frozen=True)
class Point:
    """A labeled point; `front` if it is on the Pareto front."""

    x: float
    y: float
    label: str
    color: int = 0
    front: bool = False


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_lines(lines: Sequence[Line], *, unit: str, label: str) -> Markup | None:
    """Curves over the updates; None without matplotlib.

    Args:
        lines: At least one.
        unit: What is shown, with its unit; above the axis.
        label: For screen readers.
    """
    if not can_draw():
        return None
    figure, axes = _canvas(_HEIGHT, unit=unit, across="update")
    axes.xaxis.set_major_formatter(_thousands)
    for line in lines:
        color = INK[f"series{line.color % SERIES}"]
        style = "o" if len(line.x) == 1 else "-"
        axes.plot(line.x, line.y, style, color=color, linewidth=1.8, markersize=4)
    return inline_svg(figure, label)


def draw_points(points: Sequence[Point], *, unit: str, label: str) -> Markup | None:
    """Score over latency, with the Pareto front as a line; None without matplotlib.

    Args:
        points: At least one; x in ms, above 0.
        unit: The score and its unit.
        label: For screen readers.
    """
    if not can_draw():
        return None
    figure, axes = _canvas(1.25 * _HEIGHT, unit=unit, across="latency p50, ms")
    _set_limits(axes, points)
    front = sorted((p.x, p.y) for p in points if p.front)
    if len(front) > 1:
        axes.step(*zip(*front, strict=True), where="post", color=INK["axis"], linestyle=(0, (3, 3)))
    for point, offset in zip(points, _offsets(axes, points), strict=True):
        color = INK[f"series{point.color % SERIES}"]
        axes.plot(
            [point.x],
            [point.y],
            "o",
            markersize=8,
            markeredgewidth=1.6,
            markeredgecolor=color,
            markerfacecolor=color if point.front else INK["ground"],
        )
        axes.annotate(
            point.label,
            (point.x, point.y),
            xytext=offset,
            textcoords="offset points",
            fontsize=_FONT,
        )
    return inline_svg(figure, label)


def _canvas(height: float, *, unit: str, across: str) -> tuple[Figure, Axes]:
    """An empty chart: a few horizontal lines, units at the ends of the axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(unit, loc="left", fontsize=_FONT, color=INK["text"], parse_math=False)
    axes.set_xlabel(across, loc="right", fontsize=_FONT, color=INK["text"])
    axes.grid(axis="y", color=INK["line"], linewidth=0.8)
    axes.tick_params(length=0, labelsize=_FONT, labelcolor=INK["text"])
    axes.locator_params(nbins=5)
    axes.yaxis.set_major_formatter(_short)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(INK["axis"])
    return figure, axes


def _short(value: float, _: Any = None) -> str:
    return f"{value:.4g}"


def _thousands(value: float, _: Any = None) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"


def _set_limits(axes: Axes, points: Sequence[Point]) -> None:
    """Latency from zero, or logarithmic over a wide range; scores with room around them."""
    from matplotlib.ticker import LogLocator, NullLocator

    slowest, fastest = max(p.x for p in points), min(p.x for p in points)
    low, high = min(p.y for p in points), max(p.y for p in points)
    if slowest > _PINCH * fastest:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(fastest / 1.6, slowest * 1.6)
    else:
        axes.set_xlim(0, 1.15 * slowest)
    axes.xaxis.set_major_formatter(_short)
    room = max(0.5, 0.15 * (high - low))
    axes.set_ylim(low - room, high + room)


_NEAR = (16.0, 11.0)  # points between two labels, across and down


def _offsets(axes: Axes, points: Sequence[Point]) -> list[tuple[float, float]]:
    """Where each label goes, relative to its point: to the right, higher or lower if taken."""
    axes.figure.canvas.draw()
    scale = 72 / axes.figure.dpi  # pixels to points
    taken = [
        (x * scale, y * scale) for x, y in axes.transData.transform([(p.x, p.y) for p in points])
    ]
    own, found = list(taken), []
    for x, y in own:
        steps = sorted((5.0 * k for k in range(-12, 13)), key=abs)
        free = next((s for s in steps if _is_free((x + 7, y - 3 + s), taken[len(own) :])), 0.0)
        taken.append((x + 7, y - 3 + free))
        found.append((7.0, -3.0 + free))
    return found


def _is_free(place: tuple[float, float], taken: Sequence[tuple[float, float]]) -> bool:
    return not any(abs(place[0] - x) < _NEAR[0] and abs(place[1] - y) < _NEAR[1] for x, y in taken)


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most about `POINTS` points: each the mean of its share of the values."""
    size = max(1, math.ceil(len(x) / POINTS))
    parts = [slice(i, i + size) for i in range(0, len(x), size)]
    return [x[part][-1] for part in parts], [sum(y[part]) / len(y[part]) for part in parts]
