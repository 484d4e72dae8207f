"""Writes the tables of docs/sparse.md from one JSON of measurements.

    python -m benchmarks.gpu.table               # from benchmarks/gpu/figures.json
    python -m benchmarks.gpu.table gpu.json      # take these figures from now on

Values not measured on a GPU have `source: modeled`, and their table states it.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

__all__ = ["DOCS", "FIGURES", "block", "insert"]

ROOT = Path(__file__).parent.parent.parent
DOCS, FIGURES = ROOT / "docs" / "sparse.md", Path(__file__).parent / "figures.json"
BEGIN, END = "<!-- benchmarks/gpu.sh: begin -->", "<!-- benchmarks/gpu.sh: end -->"
# Kind, mode and use of Triton's kernels, for each column.
COLUMNS = (
    ("dense", ("dense", "eager", None)),
    ("dense, graph", ("dense", "graph", None)),
    ("tiles", ("tiles", "eager", True)),
    ("tiles, graph, no Triton", ("tiles", "graph", False)),
    ("tiles, graph", ("tiles", "graph", True)),
)


def block(figures: dict[str, Any]) -> str:
    """The tables as Markdown."""
    gpu, batch = figures["machine"]["gpu"], {row["batch"] for row in figures["encoder"]}
    batches = "/".join(str(size) for size in sorted(batch))
    source = figures["source"]
    title = f"{gpu}, bf16, 224 px, 60 % masked, batch {batches}; milliseconds, **{source}**"
    if source != "measured":
        title += ": no GPU has confirmed these figures"
    lines = [BEGIN, title + ".", ""]
    lines += _table("forward and backward of the encoder", "model", figures["encoder"])
    lines += _table("update of a distillation", "student", figures["update"])
    return "\n".join([*lines, END])


def insert(text: str, figures: dict[str, Any]) -> str:
    """A page with its tables regenerated from the figures."""
    before, _, rest = text.partition(BEGIN)
    return before + block(figures) + rest.partition(END)[2]


def _table(what: str, key: str, rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    head = [what, *(name for name, _ in COLUMNS), "over dense"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for name in dict.fromkeys((row[key], row.get("teacher")) for row in rows):
        own = [row for row in rows if (row[key], row.get("teacher")) == name]
        cells = [_milliseconds(own, *wanted) for _, wanted in COLUMNS]
        dense, best = cells[0], cells[4] or cells[3]
        gain = f"{dense / best:.2f}x" if dense and best else "–"
        label = name[0] + (f", with {name[1]}, {own[0]['masks']} masks" if name[1] else "")
        shown = [f"{cell:.1f}" if cell else "–" for cell in cells]
        lines.append("| " + " | ".join([label, *shown, gain]) + " |")
    return [*lines, ""]


def _milliseconds(
    rows: list[dict[str, Any]], kind: str, mode: str, triton: bool | None
) -> float | None:
    """The value from the matching row; None if there is none."""
    for row in rows:
        if (row["kind"], row["mode"]) == (kind, mode) and triton in (None, row["triton"]):
            return row["ms"]
    return None


def main() -> None:
    if len(sys.argv) > 1:
        shutil.copy(sys.argv[1], FIGURES)
    DOCS.write_text(insert(DOCS.read_text(), json.loads(FIGURES.read_text())))


if __name__ == "__main__":
    main()
