"""The command `distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hgkd_edge.cli.options import AsJson, Overrides, RecipeName
from hgkd_edge.cli.output import next_lines, show_result
from hgkd_edge.processes import is_main


def distill(
    recipe: RecipeName,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume a stopped run.")] = False,
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder; default: runs/NAME.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Stop after the first updates; report whether it learns."),
    ] = False,
    check_updates: Annotated[
        int, typer.Option(metavar="N", min=1, help="Number of updates of --check.")
    ] = 300,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only report the time, memory and disk that it will take."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Distill a Vision Transformer into a dense CNN.

    A sparse CNN sees the visible patches and learns to predict the Transformer's features.

    Example: hgkd-edge distill recipe.yaml --set student.name=resnet50
    """
    from hgkd_edge.api import distilling

    if dry_run:
        show_result(distilling.dry_run(recipe, overrides or ()), as_json)
        return
    where: dict[str, Any] = {"run": run, "resume": resume}
    if check:
        result = distilling.check(recipe, overrides or (), updates=check_updates, **where)
    else:
        made = distilling.distill(recipe, overrides or (), **where)
        if not is_main():
            return
        result = made.distilled
    show_result(result, as_json, *next_step(result["run"], checked="signs" in result))


def next_step(run: str, *, checked: bool) -> list[str]:
    """What follows a distillation, or a check of one."""
    if checked:
        return next_lines(run, "distill {}/recipe.yaml --resume --run {}")
    return next_lines(run, "evaluate", "export {} --onnx --trt", "bench")
