"""The command `report`."""

from __future__ import annotations

from hgkd_edge.cli.options import AsJson, Run
from hgkd_edge.cli.output import show


def report(run: Run = None, as_json: AsJson = False) -> None:
    """Write one HTML page about a run: curves, scores, pictures, proofs, speed, origin.

    Example: hgkd-edge report runs/demo
    """
    from hgkd_edge.api.run import load

    page = load(run).report()
    show({"report": str(page)}, as_json, lambda: [f"report: {page}"])
