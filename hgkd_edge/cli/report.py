"""The command `report`."""

from __future__ import annotations

from hgkd_edge.cli.options import AsJson, Run
from hgkd_edge.cli.output import show


def report(run: Run = None, as_json: AsJson = False) -> None:
    """Write an HTML page about a run.

    It shows curves, scores, pictures, verification, latency and provenance.

    Example: hgkd-edge report runs/demo
    """
    from hgkd_edge import report as verb
    from hgkd_edge.rundir import RunDir

    page = verb.report(RunDir.resolve(run))
    show({"report": str(page)}, as_json, lambda: [f"report: {page}"])
