"""The command `report`."""

from __future__ import annotations

from hgkd_edge.cli.options import AsJson, Runs
from hgkd_edge.cli.output import show


def report(runs: Runs = None, as_json: AsJson = False) -> None:
    """Write one HTML page about a run, or one that compares several runs.

    The page needs no network and no other file: curves, pictures of what the student sees, scores,
    proofs, the file to deploy, provenance.

    Example: hgkd-edge report runs/demo
    """
    from hgkd_edge.api.run import load

    first, *others = [load(run) for run in runs] if runs else [load()]
    page = first.report(*others)
    show({"report": str(page)}, as_json, lambda: [f"report: {page}"])
