"""Curves of a training, from its log."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hgkd_edge.manifest_record import HeldOut
from hgkd_edge.parsing import MAX_LABEL_BYTES, MAX_LOG_BYTES, parse_json
from hgkd_edge.report.charts import Line, draw_lines, thinned
from hgkd_edge.report.view import Chart, Charts, Legend, Section
from hgkd_edge.rundir import RunDir

__all__ = [
    "PANELS",
    "Curve",
    "Panel",
    "is_finite",
    "panel_chart",
    "read_log",
    "training_section",
    "with_held_out",
]

_MOST_KEYS = 32  # of a log's figures
_MOST_PARTS = 6  # of the loss that get a curve


@dataclass
class Curve:
    """One figure over the updates."""

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Panel:
    """A chart of one or more figures of a log.

    Attributes:
        title: What it shows.
        unit: With its unit, as the axis says it.
        keys: Names of the figures in the log, each with its name in the legend.
        factor: Factor from the log's unit to the chart's.
    """

    title: str
    unit: str
    keys: Mapping[str, str]
    factor: float = 1.0


PANELS = (
    Panel("Loss", "training loss", {"loss": "training"}),
    Panel(
        "Cosine to the teacher",
        "cosine similarity, 1 = equal",
        {
            "cosine": "training images",
            "held_out_cosine": "held-out images",
            "mean_token": "baseline: mean token",
        },
    ),
    Panel("k-NN accuracy", "top-1 on held-out images, %", {"knn": "held-out images"}, 100.0),
    Panel("Accuracy", "top-1 on training images, %", {"accuracy": "training images"}, 100.0),
    Panel("Learning rate", "learning rate of the update", {"lr": "training"}),
    Panel("Throughput", "images per second", {"images_per_s": "training"}),
)
_KNOWN = {key for panel in PANELS for key in panel.keys} | {"step", "epoch", "data_share"}


def training_section(title: str, log: Mapping[str, Curve]) -> Section | None:
    """A chart for each figure of a log; None for an empty log."""
    if "loss" not in log:
        return None
    parts = sorted(log.keys() - _KNOWN)[:_MOST_PARTS]
    other = Panel("Other figures", "as logged", {key: key for key in parts})
    charts = [panel_chart(panel, [log]) for panel in (*PANELS, other)]
    return Section(title, [Charts([chart for chart in charts if chart is not None])])


def with_held_out(log: Mapping[str, Curve], held_out: HeldOut | None) -> Mapping[str, Curve]:
    """A distillation's log with its scores at the end: held-out cosine, and that of the baseline.

    Args:
        log: As logged.
        held_out: The manifest's record of the scores, if there is one.
    """
    if held_out is None or "cosine" not in log:
        return log
    steps = log["cosine"].steps
    ends = {
        "held_out_cosine": Curve([steps[-1]], [held_out.student]),
        "mean_token": Curve([steps[0], steps[-1]], [held_out.mean_token] * 2),
    }
    return {**ends, **log}


def panel_chart(panel: Panel, logs: Sequence[Mapping[str, Curve]]) -> Chart | None:
    """One chart of a panel's figures in one or more logs; None where no log has any.

    One log: a color for each figure. Several logs: a color for each log.
    """
    lines, lasts, legend = [], [], []
    for number, log in enumerate(logs):
        for place, key in enumerate(panel.keys):
            if (curve := log.get(key)) is None:
                continue
            x, y = thinned(curve.steps, curve.values)
            color = number if len(logs) > 1 else place
            if len(logs) == 1:
                legend.append(Legend(place, panel.keys[key]))
            lines.append(Line(x, [value * panel.factor for value in y], color))
            lasts.append(f"{curve.values[-1] * panel.factor:.4g}")
            step = curve.steps[-1]
    if not lines:
        return None
    if len(legend) > 1:
        lasts = [f"{entry.name} {last}" for entry, last in zip(legend, lasts, strict=True)]
    figures = ", ".join(lasts)
    about = f"{figures} at update {step:,.0f}" if len(logs) == 1 else ""
    svg = draw_lines(lines, unit=panel.unit, label=f"{panel.title} over the updates")
    return Chart(panel.title, panel.unit, svg, about, legend if len(lines) > 1 else ())


def read_log(run: RunDir, file: Path) -> dict[str, Curve]:
    """Every finite figure of a log over its steps; empty for a missing log.

    A killed process may have left the last line half written; lines without a step are skipped.
    """
    found: dict[str, Curve] = {}
    for record in _records(run, file):
        for key, value in record.items():
            if key not in found and len(found) >= _MOST_KEYS:
                continue
            curve = found.setdefault(key, Curve())
            curve.steps.append(record["step"])
            curve.values.append(value)
    return found


def _records(run: RunDir, file: Path) -> Iterator[dict[str, float]]:
    lines = run.read_bytes(file, MAX_LOG_BYTES).splitlines() if file.is_file() else []
    for line in lines:
        try:
            record = parse_json(line.decode(), MAX_LABEL_BYTES)
        except ValueError:
            continue
        if isinstance(record, dict) and is_finite(record.get("step")):
            yield {key: value for key, value in record.items() if is_finite(value)}


def is_finite(value: Any) -> bool:
    """Whether a value is a number that a chart can hold."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) < 1e15 and math.isfinite(value)
