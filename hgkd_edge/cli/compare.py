"""The command `compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hgkd_edge.cli.options import AsJson, Runs
from hgkd_edge.cli.output import show

if TYPE_CHECKING:
    from hgkd_edge.rundir import RunDir

Measure = Annotated[
    bool, typer.Option("--measure", help="Measure files that have no latency on this machine.")
]
MaxDrop = Annotated[
    float, typer.Option(min=0, help="Loss against fp32, in points, that needs no warning.")
]


def compare(
    runs: Runs = None, measure: Measure = False, max_drop: MaxDrop = 1.0, as_json: AsJson = False
) -> None:
    """Compare exported files by score, latency and size.

    It shows which file to deploy on which device.

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
    from hgkd_edge.comparison.measuring import measure_missing
    from hgkd_edge.console import live_progress

    with live_progress() as tell:
        return [line for folder in folders for line in measure_missing(folder, tell)]
