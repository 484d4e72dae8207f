"""`distill --dry-run`: what a distillation will take, from a few updates that are thrown away.

Everything is built as for a real run: images, teacher, student, a checkpoint, an evaluation. The
updates run in a temporary folder. The targets of `teacher.cache` are timed on a few passes.
"""

from __future__ import annotations

import math
import resource
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from exporters.atomic_files import temporary_folder
from hgkd_edge.data.augment import CROP_DRAWS, training_view
from hgkd_edge.data.sources import ImageSource, open_splits
from hgkd_edge.distillation.parts import Parts, build
from hgkd_edge.distillation.pretrain import pretrained_file, pretraining
from hgkd_edge.distillation.setup import (
    Setup,
    load_teacher,
    make_model,
    print_licenses,
    ready_teacher,
)
from hgkd_edge.distillation.target_cache import (
    BATCH,
    TargetCache,
    require_decoded,
    target_pass,
)
from hgkd_edge.distillation.training import Distilling
from hgkd_edge.distillation.watching import Onlooker
from hgkd_edge.engine import Training, Workplace, epochs_between_looks, train
from hgkd_edge.engine.checkpoint import write_checkpoint
from hgkd_edge.engine.journal import rate_in
from hgkd_edge.errors import RecipeError
from hgkd_edge.files import cache_dir
from hgkd_edge.processes import count
from hgkd_edge.provenance import report_photos
from hgkd_edge.recipe import Recipe
from hgkd_edge.recipe_sections import TrainConfig
from hgkd_edge.records import Record

__all__ = ["DryRun", "dry_run"]

UPDATES = 12  # the later half counts: the first ones choose kernels
PASSES = 3  # of the teacher, for the targets of `teacher.cache`


class FreeBytes(Record):
    """Free bytes of the disks of the run folder and the cache."""

    run: int
    cache: int


class DryRun(Record):
    """What a distillation will take.

    Attributes:
        run: The recipe's name.
        images: Number of training images.
        seconds: By part: `set_up`, `pretraining`, `targets`, `training`, `checkpoints`,
            `evaluation`; parts that the run does not have are missing.
        total_seconds: Their sum, without the scores at the end.
        images_per_s: Rate of the training.
        memory_bytes: At its peak.
        gpu_memory_bytes: At its peak; None without a GPU.
        run_bytes: Of the run folder.
        cache_bytes: Of the teacher's targets.
        free_bytes: Of the disks of both.
    """

    run: str
    images: int
    seconds: dict[str, float]
    total_seconds: float
    images_per_s: float
    memory_bytes: int
    gpu_memory_bytes: int | None
    run_bytes: int
    cache_bytes: int
    free_bytes: FreeBytes


def dry_run(recipe: Recipe, *, parts: Parts | None = None) -> DryRun:
    """Time a few updates, and estimate the whole run.

    Args:
        recipe: Fully resolved.
        parts: The recipe's networks, if already built.

    Raises:
        RecipeError: The recipe cannot work, or there are several processes.
        DataError: The images cannot be read.
    """
    if count() > 1:
        raise RecipeError("--dry-run: runs in one process", hint="start it without torchrun")
    begin = time.perf_counter()
    parts = parts or build(recipe)
    print_licenses(recipe, parts)
    splits = open_splits(recipe.data)
    report_photos(splits)
    source = splits["train"]
    require_decoded(source, recipe)
    pretrains = recipe.teacher.weights == "pretrain" and recipe.loss.feature_weight
    if pretrains and pretrained_file(recipe, source, parts.teacher_size).is_file():
        pretrains = False
    with temporary_folder() as folder:
        seconds, aside = {"set_up": 0.0}, 0.0
        if pretrains:
            begun = time.perf_counter()
            seconds["pretraining"] = _pretraining_seconds(recipe, parts, source, folder)
            aside = time.perf_counter() - begun
        else:
            load_teacher(recipe, parts, source, resume_command="")
        setup = Setup(recipe, parts, ready_teacher(recipe, parts, source), splits, None)
        seconds["set_up"] = time.perf_counter() - begin - aside
        cache_bytes = 0
        if recipe.teacher.cache:
            setup, cache_bytes, seconds["targets"] = _with_blank_cache(setup)
        training = _training(setup, folder)
    seconds |= training.seconds
    on_gpu = torch.cuda.is_available()
    return DryRun(
        run=recipe.name,
        images=len(source),
        seconds=seconds,
        total_seconds=sum(seconds.values()),
        images_per_s=training.images_per_s,
        memory_bytes=_peak_memory(),
        gpu_memory_bytes=torch.cuda.max_memory_reserved() if on_gpu else None,
        run_bytes=training.run_bytes,
        cache_bytes=cache_bytes,
        free_bytes=FreeBytes(
            run=shutil.disk_usage(Path()).free,
            cache=shutil.disk_usage(_existing(cache_dir())).free,
        ),
    )


@dataclass(frozen=True)
class _Timed:
    """The student's training: seconds by part, rate, and bytes of its files."""

    seconds: dict[str, float]
    images_per_s: float
    run_bytes: int


def _training(setup: Setup, folder: Path) -> _Timed:
    recipe, source = setup.recipe, setup.source
    config = recipe.train
    torch.manual_seed(recipe.seed)
    model = make_model(recipe, setup.parts, setup.teacher)
    task = Distilling(model, setup.teacher, setup.parts, recipe, setup.cache)
    rate, checkpoint = _rate(task, source, config, folder, seed=recipe.seed)
    size, state = checkpoint.stat().st_size, torch.load(checkpoint, weights_only=True)
    begun = time.perf_counter()
    write_checkpoint(folder / "again.pt", state, resume_command="")
    saving = time.perf_counter() - begun
    seconds = {
        "training": config.epochs * len(source) / rate,
        "checkpoints": saving * math.ceil(config.epochs / config.checkpoint_every),
    }
    every = epochs_between_looks(config, images=len(source))
    if every and (looks := (config.epochs - 1) // every):
        begun = time.perf_counter()
        Onlooker(setup)(model)
        seconds["evaluation"] = looks * (time.perf_counter() - begun)
    weights = setup.parts.encoder.state_dict().values()
    dense = sum(each.numel() * each.element_size() for each in weights)
    # The old checkpoint stays until the new one is complete.
    return _Timed(seconds, rate, run_bytes=2 * size + dense)


def _pretraining_seconds(recipe: Recipe, parts: Parts, source: ImageSource, folder: Path) -> float:
    """Seconds of pre-training the teacher; without its `label_epochs`."""
    task, config = pretraining(parts.vit, recipe, parts.teacher_size)
    rate, _ = _rate(task, source, config, folder / "teacher", seed=recipe.seed)
    return config.epochs * len(source) / rate


def _rate(
    task: Training, source: ImageSource, config: TrainConfig, folder: Path, *, seed: int
) -> tuple[float, Path]:
    """Images per second of a few updates, and their checkpoint."""
    place = Workplace(folder / "log.jsonl", folder / "checkpoints" / "last.pt")
    epochs = max(config.epochs, UPDATES)  # also a run of a few batches reaches the last update
    train(
        task,
        source,
        config.model_copy(update={"trackers": (), "epochs": epochs}),
        seed=seed,
        place=place,
        label="timing updates",
        until=UPDATES,
    )
    return rate_in(place.log_file), place.checkpoint_file


def _with_blank_cache(setup: Setup) -> tuple[Setup, int, float]:
    """The setup with targets of zeros in no memory; bytes and seconds of the real ones."""
    recipe, source, teacher = setup.recipe, setup.source, setup.teacher
    shape = (len(source), recipe.teacher.cache, *teacher.center.shape)
    draws = torch.rand(shape[1], len(source), CROP_DRAWS)
    chosen = torch.arange(min(BATCH, len(source)))
    images = source.images[chosen].to(teacher.center.device)
    view = training_view(images, draws[0, chosen], recipe.data)
    run = target_pass(teacher, recipe)
    run(view).cpu()  # the first pass chooses kernels
    begun = time.perf_counter()
    for _ in range(PASSES):
        run(view).cpu()
    per_image = (time.perf_counter() - begun) / (PASSES * len(chosen))
    blank = TargetCache(np.broadcast_to(np.float16(0), shape), draws, Path())
    return replace(setup, cache=blank), 2 * math.prod(shape), per_image * shape[0] * shape[1]


def _peak_memory() -> int:
    """Largest memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _existing(path: Path) -> Path:
    """The nearest folder that exists."""
    return next(each for each in (path, *path.parents) if each.is_dir())
