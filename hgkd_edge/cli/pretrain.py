"""The command `pretrain`."""

from __future__ import annotations

import shlex

from hgkd_edge.cli.options import AsJson, Overrides, RecipeName
from hgkd_edge.cli.output import next_lines, show


def pretrain(
    recipe: RecipeName,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Pre-train only a recipe's teacher, without labels.

    `distill` also runs this step. If it is stopped, the same command resumes it.

    Example: hgkd-edge pretrain demo-teacher
    """
    from hgkd_edge.api import distilling

    weights = distilling.pretrain(recipe, overrides or ())
    changes = "".join(f" --set {shlex.quote(one)}" for one in overrides or ())
    following = [f"{line}{changes}" for line in next_lines(recipe, "distill")]
    show({"weights": str(weights)}, as_json, lambda: [f"teacher: {weights}", *following])
