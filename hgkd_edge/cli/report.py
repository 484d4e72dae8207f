"""The command `report`."""

from __future__ import annotations

from hgkd_edge.cli.options import AsJson, Runs
from hgkd_edge.cli.output import show


def report(runs: Runs = None, as_json: AsJson = False) -> None:
    """Write an HTML page about a run, or compare runs.

    It shows curves, pictures of features, scores, verification, latency and provenance. It is one
    file, and needs no network.

    Example: hgkd-edge report runs/demo
    """
    from hgkd_edge.api.run import load

    first, *others = [load(run) for run in runs] if runs else [load()]
    page = first.report(*others)
    show({"report": str(page)}, as_json, lambda: [f"report: {page}"])
