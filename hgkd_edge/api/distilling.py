"""`distill` and `check`: from a recipe to a run. `pretrain`: only its teacher."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from hgkd_edge.api.result import Result
from hgkd_edge.api.run import Run
from hgkd_edge.api.work import (
    Overrides,
    as_assignments,
    require_training_packages,
)
from hgkd_edge.cells import counted
from hgkd_edge.console import console
from hgkd_edge.data.presence import require_data
from hgkd_edge.errors import RecipeError
from hgkd_edge.processes import on_main
from hgkd_edge.recipe import Recipe, find_recipe, load_recipe
from hgkd_edge.rundir import RunDir
from hgkd_edge.yaml_settings import parse_settings

if TYPE_CHECKING:
    from hgkd_edge.distillation.check import Checked
    from hgkd_edge.distillation.dry_run import DryRun
    from hgkd_edge.distillation.parts import Parts

__all__ = [
    "check",
    "checked_lines",
    "distill",
    "dry_run",
    "dry_run_lines",
    "pretrain",
    "resolve_recipe",
]

AnyRecipe = str | os.PathLike[str] | Mapping[str, object] | Recipe


def distill(
    recipe: AnyRecipe,
    overrides: Overrides = (),
    *,
    run: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> Run:
    """Train a sparse CNN student to predict what a Transformer infers; leave a dense CNN.

    Args:
        recipe: A recipe file, the name of a built-in recipe, a mapping, or a `Recipe`.
        overrides: Keys to change: `{"train.epochs": 10}` or `["train.epochs=10"]`.
        run: Run folder; None is `runs/NAME`, or the first free `runs/NAME-2`, `-3`, ...
        resume: Resume a stopped run; a finished one is returned as it is.

    Returns:
        The run, with its dense backbone in `run.path / "backbone.safetensors"`.

    Raises:
        RecipeError: The recipe cannot work; lists all problems.
        DataError: The images cannot be read.
        RunError: The folder is in use, or cannot be resumed.
        TrainingError: The loss is not finite, or a file cannot be written.
        Interrupted: Stopped by Ctrl-C; the error's hint resumes it.

    Example:
        `hgkd_edge.distill("demo", {"train.epochs": 5}).evaluate()`
    """
    job, parts = _prepared(recipe, overrides, run=run, resume=resume)
    if not job.finished:
        from hgkd_edge.distillation.distill import distill as train

        with job.folder.at_work():
            train(job.recipe, job.folder, parts=parts, resume=resume)
    return Run(job.folder)


def check(
    recipe: AnyRecipe,
    overrides: Overrides = (),
    *,
    updates: int = 300,
    run: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> Result:
    """Make the first updates of a distillation and report whether it works so far.

    `distill(..., resume=True)` continues it.

    Args:
        recipe: As for `distill`.
        overrides: As for `distill`.
        updates: Number of updates.
        run: As for `distill`.
        resume: Continue a stopped run up to this number of updates.

    Returns:
        `run`, `signs` that it works, `doubts`, the held-out scores behind them, `images_per_s`, and
        the `hours` of the whole run at this rate. For a finished run: its `Run.distilled`.

    Raises:
        UserError: As for `distill`.
    """
    job, parts = _prepared(recipe, overrides, run=run, resume=resume)
    if job.finished:
        return Run(job.folder).distilled
    from hgkd_edge.distillation.distill import first_updates

    with job.folder.at_work():
        found = first_updates(job.recipe, job.folder, updates, parts=parts, resume=resume)
    where = {"run": str(job.folder.path)}
    if found is None:  # the main process has it
        return Result(where, list)
    return Result(where | found.to_dict(), lambda: checked_lines(found))


def dry_run(recipe: AnyRecipe, overrides: Overrides = ()) -> Result:
    """Build everything, time a few updates, and estimate the run; nothing of it is kept.

    Args:
        recipe: As for `distill`.
        overrides: As for `distill`.

    Returns:
        `total_seconds` and `seconds` by part, `images_per_s`, `memory_bytes`, `gpu_memory_bytes`,
        `run_bytes` and `cache_bytes` on disk, `free_bytes`.

    Raises:
        UserError: As for `distill`.
    """
    loaded = resolve_recipe(recipe, overrides)
    require_training_packages("distill")
    require_data(loaded.data)
    from hgkd_edge.distillation.dry_run import dry_run as estimate
    from hgkd_edge.distillation.parts import build

    found = estimate(loaded, parts=build(loaded))
    return Result(found.to_dict(), lambda: dry_run_lines(found))


def pretrain(recipe: AnyRecipe, overrides: Overrides = ()) -> Path:
    """Pre-train only a recipe's teacher on its images, without labels; `distill` does it too.

    A stopped training is resumed by the same call. A finished one is found in the cache.

    Args:
        recipe: As for `distill`, with `teacher.weights: pretrain`.
        overrides: As for `distill`.

    Returns:
        The teacher's weights (safetensors), in the cache.

    Raises:
        RecipeError: The recipe cannot work, or its teacher has other weights.
        DataError: The images cannot be read.
        Interrupted: Stopped by Ctrl-C.
    """
    loaded = resolve_recipe(recipe, overrides)
    if loaded.teacher.weights != "pretrain":
        raise RecipeError(
            f"teacher.weights = '{loaded.teacher.weights}': there is nothing to pre-train",
            hint="--set teacher.weights=pretrain",
        )
    require_training_packages("pretrain")
    from hgkd_edge.data.sources import open_splits
    from hgkd_edge.distillation.parts import build
    from hgkd_edge.distillation.pretrain import pretrain_teacher
    from hgkd_edge.provenance import report_skipped

    parts = build(loaded)
    source = open_splits(loaded.data)["train"]
    if not source.streamed:
        report_skipped({"train": source})
    weights = pretrain_teacher(parts.vit, source, loaded, size=parts.teacher_size)
    if source.streamed:  # images were met during the training
        report_skipped({"train": source})
    return weights


def resolve_recipe(recipe: AnyRecipe, overrides: Overrides = ()) -> Recipe:
    """The recipe that a file, a built-in name, a mapping or a `Recipe` stands for.

    Raises:
        RecipeError: Lists all problems.
    """
    changes = as_assignments(overrides)
    if isinstance(recipe, Recipe):
        recipe = recipe.model_dump(mode="json", exclude_unset=True)
    if isinstance(recipe, Mapping):
        return parse_settings(Recipe, copy.deepcopy(dict(recipe)), changes, name="recipe")
    return load_recipe(find_recipe(os.fspath(recipe)), changes)


def _prepared(
    recipe: AnyRecipe, overrides: Overrides, *, run: str | os.PathLike[str] | None, resume: bool
) -> tuple[_Job, Parts | None]:
    """A distillation to run, and its networks if they are built."""
    parts: Parts | None = None  # of the main process alone: networks are not sent to others

    def prepare() -> _Job:
        nonlocal parts
        loaded = resolve_recipe(recipe, overrides)
        if resume:
            return _resumed(loaded, run)
        require_data(loaded.data)
        require_training_packages("distill")
        from hgkd_edge.distillation.parts import build  # loads torch: errors need not wait for it

        parts = build(loaded)  # a recipe that cannot work leaves no folder behind
        return _Job(loaded, RunDir.create(loaded, None if run is None else Path(run)))

    job = on_main(prepare)
    if job.finished:
        console.print(f"run '{job.folder.path}' is finished: nothing to resume", soft_wrap=True)
    else:
        require_training_packages("distill")
        job.folder.announce(job.folder.why_this_folder())
    return job, parts


@dataclass(frozen=True)
class _Job:
    """A distillation to run: its settings and its folder."""

    recipe: Recipe
    folder: RunDir
    finished: bool = False


def _resumed(recipe: Recipe, run: str | os.PathLike[str] | None) -> _Job:
    folder = RunDir.unfinished(recipe) if run is None else RunDir.resolve(Path(run))
    folder.require_same_recipe(recipe)
    if not folder.is_distilled:
        folder.require_resumable()
    # `auto` depends on the machine and on hgkd-edge's version: continue in what the run began with.
    precision = folder.manifest().precision
    if precision is not None and recipe.train.precision == "auto":
        train = recipe.train.model_copy(update={"precision": precision})
        recipe = recipe.model_copy(update={"train": train})
    return _Job(recipe, folder, folder.is_distilled)


def checked_lines(found: Checked) -> list[str]:
    """Whether a distillation works so far."""
    signs, doubts = found.signs, found.doubts
    if not signs and not doubts:
        verdict = "nothing to judge by: no image is held out (data.holdout)"
    elif doubts:
        verdict = "no clear sign that distillation works yet" if not signs else "mixed signs so far"
    else:
        verdict = "distillation works so far"
    return [
        verdict,
        *(f"  yes: {line}" for line in signs),
        *(f"  no: {line}" for line in doubts),
        f"  the whole run takes {found.hours:.1f} h at {found.images_per_s:.0f} images/s",
    ]


PARTS = {
    "set_up": "images and teacher",
    "pretraining": "pre-training the teacher",
    "targets": "the teacher's targets",
    "training": "training",
    "checkpoints": "checkpoints",
    "evaluation": "held-out scores",
}


def dry_run_lines(found: DryRun) -> Iterator[str]:
    """Time, memory and disk that a distillation will take."""
    images = f"{counted(found.images, 'image')} at {found.images_per_s:.0f} images/s"
    yield f"dry run of '{found.run}': {images}"
    for part, seconds in found.seconds.items():
        yield f"  {PARTS[part]:<26}{_duration(seconds):>12}"
    yield f"  {'total, before final scores':<26}{_duration(found.total_seconds):>12}"
    memory = f"memory: {found.memory_bytes / 1e9:.1f} GB"
    if found.gpu_memory_bytes is not None:
        memory += f", GPU {found.gpu_memory_bytes / 1e9:.1f} GB"
    yield memory
    yield _disk("run folder", found.run_bytes, found.free_bytes.run)
    if found.cache_bytes:
        yield _disk("teacher.cache", found.cache_bytes, found.free_bytes.cache)


def _disk(name: str, size: int, free: int) -> str:
    enough = "" if size < free else ": not enough"
    return f"disk: {name} {size / 1e9:.2f} GB of {free / 1e9:.0f} GB free{enough}"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
