"""Writes the tables of docs/lab-notebook.md and docs/results.md from the cells."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.study.arms import ABLATION, ARMS, EQUAL_TIME, REMOVED, STATIC_CAMERA

__all__ = ["read_cells", "report", "table"]

Cell = dict[str, Any]
SCORES: dict[str, Callable[[Cell], float | None]] = {
    "k-NN on val": lambda cell: cell.get("val", {}).get("knn"),
    "probe on val": lambda cell: cell.get("val", {}).get("linear_probe"),
    "k-NN": lambda cell: cell.get("knn"),
    "linear probe": lambda cell: cell.get("linear_probe"),
    "1 % labels": lambda cell: cell["finetune"].get("0.01"),
    "10 % labels": lambda cell: cell["finetune"].get("0.1"),
    "20 % labels": lambda cell: cell["finetune"].get("0.2"),
    "all labels": lambda cell: cell["finetune"].get("1.0"),
}

# Kind -> its arms in order, and the heading of its tables.
KINDS: dict[str, tuple[Iterable[str], str]] = {
    "arms": (ARMS, "arms"),
    "ablation": (ABLATION, "ablation"),
    "static": (STATIC_CAMERA, "a camera that never moves"),
    "equal": (EQUAL_TIME, "{minutes:g} minutes of the student"),
    "chosen-by": ((*EQUAL_TIME, *REMOVED), "{minutes:g} minutes of the student, scored on `val`"),
}


def read_cells(folder: Path, key: str = "arm") -> list[Cell]:
    """Every cell in a folder that has this key: `arm`, or `objective` of a teacher."""
    cells = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    return [cell for cell in cells if key in cell]


def report(folder: Path) -> str:
    """Markdown tables of every cell in a folder: mean ± standard deviation over seeds."""
    cells, parts = read_cells(folder), []
    for base in sorted({cell["base"] for cell in cells}):
        for kind, (order, title) in KINDS.items():
            own = [cell for cell in cells if (cell["base"], cell["kind"]) == (base, kind)]
            for minutes in sorted({cell.get("minutes", 0) for cell in own}):
                chosen = [cell for cell in own if cell.get("minutes", 0) == minutes]
                head = f"### {base}: {title.format(minutes=minutes)}"
                parts += [head, table(chosen, list(order)), _machines(chosen)]
    return "\n\n".join([*parts, *_objectives(read_cells(folder, "objective"))])


def _machines(cells: list[Cell]) -> str:
    """Where each student was trained: a line per machine and precision; seeds in brackets."""
    students: dict[str, dict[str, list[int]]] = {}
    for cell in cells:
        machine = ", ".join(filter(None, (cell["machine"], cell.get("precision"))))
        students.setdefault(machine, {}).setdefault(cell["arm"], []).append(cell["seed"])
    return "\n".join(
        f"- {machine}: "
        + "; ".join(f"'{arm}' ({', '.join(map(str, seeds))})" for arm, seeds in arms.items())
        for machine, arms in sorted(students.items())
    )


def _objectives(cells: list[Cell]) -> list[str]:
    """Teachers trained on the images themselves; scored by the mean of their patch tokens."""
    if not cells:
        return []
    rows = [
        f"| {cell['data']} | {cell['objective']} | {cell['epochs']} | {cell['seconds'] / 60:.0f} "
        f"| {100 * cell['knn']:.1f} | {100 * cell['linear_probe']:.1f} | {cell['machine']} |"
        for cell in cells
    ]
    head = "| images | objective | epochs | minutes | k-NN | linear probe | machine |"
    return ["### teachers", "\n".join([head, "|---|---|---:|---:|---:|---:|---|", *rows])]


def table(cells: list[Cell], order: list[str]) -> str:
    """Cells as a Markdown table: a row per arm, in this order; a column per available score."""
    columns = {name: get for name, get in SCORES.items() if any(get(c) is not None for c in cells)}
    timed = any("seconds_distilled" in cell for cell in cells)
    heads = [*columns, *(["distilled, s"] if timed else [])]
    lines = [
        f"| arm | seeds | {' | '.join(heads)} |",
        f"|---|---:|{'---:|' * len(heads)}",
    ]
    for arm in order:
        own = [cell for cell in cells if cell["arm"] == arm]
        if own:
            figures = [_percent([get(cell) for cell in own]) for get in columns.values()]
            if timed:
                figures.append(_seconds([cell.get("seconds_distilled") for cell in own]))
            lines.append(f"| {arm} | {len(own)} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _percent(values: list[float | None]) -> str:
    found = [100 * value for value in values if value is not None]
    if not found:
        return "-"
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.1f}{spread}"


def _seconds(values: list[float | None]) -> str:
    found = [value for value in values if value is not None]
    if not found:
        return "-"
    some = f" ({len(found)} of {len(values)})" if len(found) < len(values) else ""
    return f"{statistics.mean(found):.0f}{some}"
