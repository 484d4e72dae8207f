"""The command `distill`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hgkd_edge.cli.options import AsJson, Overrides, RecipeName
from hgkd_edge.cli.output import announce, at_work, next_line, say, show
from hgkd_edge.processes import on_main

if TYPE_CHECKING:
    from hgkd_edge.distillation.parts import Parts
    from hgkd_edge.recipe import Recipe
    from hgkd_edge.rundir import RunDir


def distill(
    recipe: RecipeName,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume a stopped run.")] = False,
    run: Annotated[Path | None, typer.Option(help="Run folder; default: runs/NAME.")] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Stop after the first updates and report how it goes."),
    ] = False,
    check_updates: Annotated[int, typer.Option(min=1, help="Updates of --check.")] = 300,
    as_json: AsJson = False,
) -> None:
    """Distill a Vision Transformer into a dense CNN.

    A sparse CNN sees the visible patches and learns to predict the Transformer's features.

    Example: hgkd-edge distill recipe.yaml --set student.name=resnet50
    """
    from hgkd_edge.recipe import find_recipe, load_recipe
    from hgkd_edge.rundir import RunDir

    parts: Parts | None = None  # of the main process alone: networks are not sent to others

    def prepare() -> tuple[Recipe, RunDir, bool]:
        nonlocal parts
        loaded = load_recipe(find_recipe(recipe), overrides or ())
        if resume:
            folder = RunDir.unfinished(loaded) if run is None else RunDir.resolve(run)
            folder.require_same_recipe(loaded)
            if not folder.is_distilled:
                folder.require_resumable()
            return loaded, folder, folder.is_distilled
        # torch comes here: a mistyped name need not wait for it
        from hgkd_edge.data.sources import require_data
        from hgkd_edge.distillation.parts import build

        require_data(loaded.data)  # before any weights are downloaded
        parts = build(loaded)  # a recipe that cannot work leaves no folder behind
        return loaded, RunDir.create(loaded, run), False

    loaded, folder, finished = on_main(prepare)
    if finished:
        say(f"run '{folder.path}' is finished: nothing to resume")
        result = {"run": str(folder.path), **folder.manifest()["result"]}
    else:
        from hgkd_edge import distill as verb

        until = check_updates if check else None
        announce(folder, folder.why_this_folder())
        with at_work(folder):
            made = verb.distill(loaded, folder, parts=parts, resume=resume, until=until)
            result = {"run": str(folder.path), **made}
    show(result, as_json, lambda: distilled_lines(result))


def distilled_lines(result: dict[str, Any]) -> list[Any]:
    """What `distill` left, and how well it predicts features."""
    from hgkd_edge.tables import warning_lines

    run = result["run"]
    if "signs" in result:
        return _checked_lines(result)
    held_out = result["held_out"]
    lines: list[Any] = [f"run folder: {run}", f"dense backbone: {run}/backbone.safetensors"]
    if held_out:
        lines.append(
            f"teacher features at {held_out['sites']} sites of {held_out['photos']} held-out "
            "images: cosine "
            f"{held_out['student']:.3f} (mean token: {held_out['mean_token']:.3f})"
        )
    lines += warning_lines(result.get("warnings", ()))
    return [*lines, next_line(run, "evaluate", "export {run} --onnx --trt", "bench")]


def _checked_lines(result: dict[str, Any]) -> list[str]:
    """Whether a distillation works so far, and how to continue it."""
    signs, doubts = result["signs"], result["doubts"]
    if not signs and not doubts:
        verdict = "nothing to judge by: no image is held out (data.holdout)"
    elif doubts:
        verdict = "no clear sign that distillation works yet" if not signs else "mixed signs so far"
    else:
        verdict = "distillation works so far"
    again = next_line(result["run"], "distill {run}/recipe.yaml --resume --run {run}")
    return [
        verdict,
        *(f"  yes: {line}" for line in signs),
        *(f"  no: {line}" for line in doubts),
        f"  the whole run takes {result['hours']:.1f} h at {result['images_per_s']:.0f} images/s",
        again,
    ]
