"""The comparison as tables of 80 columns, and as a plot of score against latency."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hgkd_edge.cells import Name, counted, milliseconds, name_table, rate
from hgkd_edge.comparison.rows import Comparison, Group, Row
from hgkd_edge.console import printable
from hgkd_edge.files import atomic_write

__all__ = ["comparison_lines", "group_heading", "legend_lines", "row_label", "write_plot"]

_WIDTH, _HEIGHT, _MARGIN = 720, 300, 56  # of a panel of the plot, at least, in pixels
_LINE = 14  # between two labels


def comparison_lines(found: Comparison, plot: Path | None = None) -> Iterator[RenderableType]:
    """A heading and a table for each device, then notes."""
    for group in found.groups:
        yield Text(group_heading(group), style="bold")
        yield _table(group, found)
    yield from (Text(line, style="dim") for line in legend_lines(found))
    yield from (Text(f"warning: {line}", style="yellow") for line in found.warnings)
    yield from (Text(f"skipped: {line}", style="dim") for line in found.remarks)
    untimed = [row for group in found.groups if not group.on.device for row in group.rows]
    if any(row.runner != "torch" for row in untimed):  # `bench` times exported files
        runs = shlex.join(found.runs)
        yield f"to measure the rest on this machine: hgkd-edge compare {runs} --measure"
    if plot is not None:
        yield f"plot: {plot}"


def group_heading(group: Group) -> str:
    """Device, batch and dates of a group, in one line."""
    on = group.on
    if not on.device:
        return "no times on this machine"
    times = sorted({row.measured[:16].replace("T", " ") for row in group.rows})
    outside = ", copies outside the time" if on.copies == "out" else ""
    return f"{on.device}, batch {on.batch}{outside}; measured {', '.join(times)}"


def _table(group: Group, found: Comparison) -> Table:
    times = ("p50 ms", "p99 ms", "img/s") if group.on.device else ()
    table = name_table(["file"], "runner", "score", "agree", *times, "MiB", *_front_title(group))
    for row in group.rows:
        score = "-" if row.score is None else f"{row.score:.2f}{'*' if row.score_elsewhere else ''}"
        cells = [score, "-" if row.cosine is None else f"{row.cosine:.4f}"]
        if times:
            cells += [
                _milliseconds(row.p50_ms) + ("~" if row.noisy else ""),
                _milliseconds(row.p99_ms),
                rate(row.throughput_ips or 0),
            ]
        front = ["yes" if row.front else ""] if _front_title(group) else []
        table.add_row(
            Name(row_label(row, found)), row.runtime, *cells, f"{row.size_mb:.1f}", *front
        )
    return table


def _front_title(group: Group) -> list[str]:
    return ["front"] if any(row.front for row in group.rows) else []


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else milliseconds(value)


def row_label(row: Row, found: Comparison) -> str:
    """A file's name: without its run's name if there is one run, with its folder if needed.

    Exported files are named after their run.
    """
    folder = Path(row.run)
    if len(found.runs) == 1:
        return row.file.removeprefix(f"{folder.resolve().name}.")
    names = [Path(run).resolve().name for run in found.runs]
    unique = names.count(folder.resolve().name) == 1 and row.file.startswith(folder.resolve().name)
    return row.file if unique else f"{row.run}/{row.file}"


def legend_lines(found: Comparison) -> Iterator[str]:
    """What the columns and signs of the tables mean."""
    rows = [row for group in found.groups for row in group.rows]
    judged = {
        f"{on.metric} in points on {counted(on.images, 'image')} of the {on.split} split"
        for on in (group.on for group in found.groups)
        if on.images
    }
    yield f"score: {'; '.join(sorted(judged)) or 'not taken'}"
    sources = sorted({row.scored_by.split(" ")[0] for row in rows if row.scored_by})
    if sources:
        yield f"scores recorded by {', '.join(sources)}"
    yield "agree: least cosine of the outputs with those of fp32"
    if any(row.front for row in rows):
        yield "front: no other row of the device is as good and faster, or as fast and better"
    if any(row.score_elsewhere for row in rows):
        yield "*: scored in another runtime or machine; outputs were verified where they were timed"
    if any(row.noisy for row in rows):
        yield "~: noisy times, see hgkd-edge bench"


@dataclass(frozen=True)
class _Point:
    """A row in a panel: its position, its label and the label's position, in pixels."""

    x: float
    y: float
    label: str
    label_y: float
    front: bool


@dataclass(frozen=True)
class _Panel:
    """Score against p50 of one device."""

    title: str
    metric: str
    points: Sequence[_Point]
    front: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    top: int
    height: int


def write_plot(found: Comparison, path: Path) -> Path | None:
    """Draw score against p50 of every device as an SVG; None where no row has both.

    Args:
        found: The rows.
        path: Where to write it.
    """
    groups = [
        (group, rows)
        for group in found.groups
        if (rows := [row for row in group.rows if row.score is not None and row.p50_ms])
    ]
    if not groups:
        return None
    panels: list[_Panel] = []
    for group, rows in groups:
        top = panels[-1].top + panels[-1].height if panels else 0
        panels.append(_panel(group, rows, found, top=top))
    environment = Environment(
        loader=PackageLoader("hgkd_edge.comparison"), autoescape=True, undefined=StrictUndefined
    )
    picture = environment.get_template("comparison.svg.j2").render(
        panels=panels,
        width=_WIDTH,
        height=panels[-1].top + panels[-1].height,
        margin=_MARGIN,
    )
    with atomic_write(path) as temporary:
        temporary.write_text(picture, encoding="utf-8", errors="backslashreplace")
    return path


def _panel(group: Group, rows: Sequence[Row], found: Comparison, *, top: int) -> _Panel:
    # Labels of equal scores are stacked, starting at the middle.
    height = max(_HEIGHT, 2 * (_MARGIN + _LINE * len(rows)))
    times, scores = [row.p50_ms or 0.0 for row in rows], [row.score or 0.0 for row in rows]
    slowest, low, high = 1.1 * max(times), min(scores), max(scores)
    low, high = (low - 0.5, high + 0.5) if high - low < 1 else (low, high)

    def place(time: float, score: float) -> tuple[float, float]:
        across = _MARGIN + time / slowest * (_WIDTH - 4 * _MARGIN)  # the rest is for labels
        down = top + _MARGIN + (high - score) / (high - low) * (height - 2 * _MARGIN)
        return round(across, 1), round(down, 1)

    points: list[_Point] = []
    for row in sorted(rows, key=lambda row: (-(row.score or 0.0), row.p50_ms)):
        x, y = place(row.p50_ms or 0.0, row.score or 0.0)
        under = points[-1].label_y + _LINE if points else 0.0
        label = printable(f"{row_label(row, found)} {row.runtime}")
        points.append(_Point(x, y, label, max(y + _LINE, under), row.front))
    front = sorted((point for point in points if point.front), key=lambda point: point.x)
    return _Panel(
        title=printable(f"{group.on.device}, batch {group.on.batch}"),
        metric=printable(group.on.metric),
        points=points,
        front=" ".join(f"{point.x},{point.y}" for point in front),
        x_ticks=[(place(t, low)[0], milliseconds(t)) for t in (slowest / 2, slowest)],
        y_ticks=[(place(0.0, s)[1], f"{s:.1f}") for s in (low, high)],
        top=top,
        height=height,
    )
