"""The command `compare`."""

from __future__ import annotations

from typing import Annotated

import typer

from hgkd_edge.cli.options import AsJson, Runs
from hgkd_edge.cli.output import show_result

Measure = Annotated[
    bool, typer.Option("--measure", help="Measure files that have no latency on this machine.")
]
MaxDrop = Annotated[
    float,
    typer.Option(metavar="POINTS", min=0, help="Warn if a score is more than POINTS below fp32's."),
]


def compare(
    runs: Runs = None, measure: Measure = False, max_drop: MaxDrop = 1.0, as_json: AsJson = False
) -> None:
    """Compare exported files by score, latency and size.

    It shows which file to deploy on which device.

    Times are those that bench has recorded. Scores that no command has recorded are computed
    on the run's held-out images and saved to scores.json.

    Example: hgkd-edge compare runs/demo --measure
    """
    from hgkd_edge.api.comparing import compare as verb

    show_result(verb(*(runs or ()), measure=measure, max_drop=max_drop), as_json)
