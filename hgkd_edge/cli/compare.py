"""The command `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hgkd_edge.cli.options import AsJson
from hgkd_edge.cli.output import show

if TYPE_CHECKING:
    from hgkd_edge.rundir import RunDir

Runs = Annotated[
    list[Path] | None, typer.Argument(metavar="[RUN]...", help="Default: the latest run.")
]
Measure = Annotated[
    bool, typer.Option("--measure", help="Measure what has no times on this machine, as bench.")
]
MaxDrop = Annotated[
    float, typer.Option(min=0, help="Points below fp32 that a file may score without a warning.")
]


def compare(
    runs: Runs = None, measure: Measure = False, max_drop: MaxDrop = 1.0, as_json: AsJson = False
) -> None:
    """Show which exported file to deploy: score, agreement, latency and size by device.

    Times are those that bench has recorded. Scores that no command has recorded are taken on the
    run's held-out images and kept in scores.json.

    Example: hgkd-edge compare runs/demo --measure
    """
    from hgkd_edge.comparison.table import compare_runs
    from hgkd_edge.comparison.view import comparison_lines, write_plot
    from hgkd_edge.rundir import RunDir

    folders = [RunDir.resolve(run) for run in runs] if runs else [RunDir.resolve()]
    failed = _measure(folders) if measure else []
    found = compare_runs(folders, max_drop=max_drop)
    found.remarks.extend(failed)
    plot = write_plot(found, folders[0].path / "comparison.svg")
    result = {**found.to_dict(), "plot": plot and str(plot)}
    show(result, as_json, lambda: comparison_lines(found, plot))


def _measure(folders: list[RunDir]) -> list[str]:
    from hgkd_edge.bench.progress import live_progress
    from hgkd_edge.comparison.measuring import measure_missing

    with live_progress() as tell:
        return [line for folder in folders for line in measure_missing(folder, tell)]
