"""`compare`: which exported file to deploy."""

from __future__ import annotations

import os
from collections.abc import Sequence

from hgkd_edge.api.result import Result
from hgkd_edge.api.run import Run, load
from hgkd_edge.comparison.compare_runs import compare_runs
from hgkd_edge.comparison.verdict import MAX_DROP
from hgkd_edge.comparison.view import comparison_lines, write_plot
from hgkd_edge.rundir import RunDir

__all__ = ["compare"]


def compare(
    *runs: Run | str | os.PathLike[str], measure: bool = False, max_drop: float = MAX_DROP
) -> Result:
    """Compare exported files by score, latency and size.

    Times are those that `Run.bench` has recorded. Scores that no command has recorded are computed
    on the run's held-out images and kept in its `scores.json`.

    Args:
        *runs: Compared with each other; none is the latest run.
        measure: Measure files that have no latency on this machine.
        max_drop: Points that a file may score below fp32 without a warning.

    Returns:
        `groups` of rows that can be compared, `warnings`, `remarks`, and the file of the `plot` in
        the first run's folder; None where no file has both a score and a time.

    Raises:
        RunError: A run has nothing exported, or one of its records is damaged.
    """
    folders = [(one if isinstance(one, Run) else load(one)).folder for one in runs or (None,)]
    failed = _measure(folders) if measure else []
    found = compare_runs(folders, max_drop=max_drop)
    found.remarks.extend(failed)
    plot = write_plot(found, folders[0].path / "comparison.svg")
    record = {**found.to_dict(), "plot": plot and str(plot)}
    return Result(record, lambda: comparison_lines(found, plot))


def _measure(folders: Sequence[RunDir]) -> list[str]:
    """Measure what has no times; the cases that could not be measured, with reasons."""
    from hgkd_edge.comparison.measuring import measure_missing
    from hgkd_edge.console import live_progress

    with live_progress() as tell:
        return [line for folder in folders for line in measure_missing(folder, tell)]
