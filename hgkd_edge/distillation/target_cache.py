"""The teacher's targets of a few views per image, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hgkd_edge.console import console, track_steps
from hgkd_edge.data.augment import Augmentation
from hgkd_edge.data.sources import ImageSource
from hgkd_edge.distillation.teacher import Teacher
from hgkd_edge.engine.setup import resolve_precision
from hgkd_edge.errors import RecipeError
from hgkd_edge.files import (
    atomic_write,
    cache_dir,
    file_sha256,
    locked,
    reserve,
    write_json,
)
from hgkd_edge.parsing import parse_json, read_text
from hgkd_edge.processes import on_main
from hgkd_edge.recipe import Recipe

__all__ = ["TargetCache", "cached_targets"]

BATCH = 64  # images of one teacher pass
MARK_EVERY = 20  # passes after which a stopped filling would resume


@dataclass(frozen=True)
class TargetCache:
    """Targets of every image's views.

    Attributes:
        targets: Float16 [n, views, R, D], a memory map.
        draws: Float32 [views, n, k]: what each view was made with (`Augmentation.view`).
        folder: Where it is on disk.
    """

    targets: np.ndarray
    draws: Tensor
    folder: Path

    def views(self, photos: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The draws of a view of each photo, and the teacher's targets of that view.

        Args:
            photos: Numbers of the photos, int64 [B], on the CPU.
            chosen: Uniform in [0, 1), float [B], on the CPU: which of its views.

        Returns:
            Float32 [B, k], and float32 [B, R, D], both on the CPU.
        """
        view = (chosen * len(self.draws)).long().clamp(max=len(self.draws) - 1)
        rows = self.targets[photos.numpy(), view.numpy()]  # [B, R, D]
        return self.draws[view, photos], torch.from_numpy(rows.astype(np.float32))


def cached_targets(teacher: Teacher, source: ImageSource, recipe: Recipe) -> TargetCache:
    """Find the targets of `teacher.cache` views per image on disk, or compute them.

    Stopped in the middle, the next call continues. They lie in the cache folder under a hash of all
    that they depend on: teacher, images, views.

    Args:
        teacher: With its weights, and standardized if it is to be.
        source: Training photos, kept in memory.
        recipe: The whole recipe.

    Raises:
        RecipeError: The images are streamed, or the disk has no room.
    """
    if source.streamed:
        raise RecipeError(
            "teacher.cache: needs the images decoded in memory, these are streamed",
            hint="--set data.decode=once, or --set teacher.cache=0",
        )
    augmentation = Augmentation.of(recipe)
    draws = torch.stack(
        [
            torch.rand(len(source), augmentation.draws, generator=_generator(recipe.seed, view))
            for view in range(recipe.teacher.cache)
        ]
    )
    shape = (len(source), len(draws), *teacher.center.shape)

    def find_or_fill() -> Path:
        name = _content_hash(teacher, source, recipe, shape)
        file = cache_dir() / "targets" / name / "targets.npy"
        with locked(file.parent, _say_waiting):
            if not _is_filled(file, shape):
                _fill(file, shape, teacher, source, draws, augmentation, recipe)
        return file

    file = on_main(find_or_fill)  # others take its word: their own statistics may round differently
    return TargetCache(np.load(file, mmap_mode="r"), draws, file.parent)


def _say_waiting() -> None:
    console.print("teacher.cache: waiting for another process that computes the same targets")


def _is_filled(file: Path, shape: tuple[int, ...]) -> bool:
    """Whether all targets are on disk, as they were written."""
    stated = _stated(file.with_name("done.json"), "sha256")
    return stated is not None and _is_whole(file, shape) and file_sha256(file) == stated


def _stated(marker: Path, key: str) -> Any:
    """What a marker says; None where it is missing or damaged."""
    try:
        return parse_json(read_text(marker))[key]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _is_whole(file: Path, shape: tuple[int, ...]) -> bool:
    """Whether a file holds an array of this shape, to its last byte.

    Opened for writing, a file that was cut off would be filled up with zeros in silence.
    """
    try:
        if file.is_symlink():  # what it leads to would be written over
            return False
        found = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return (found.shape, found.dtype) == (shape, np.float16)


def _fill(
    file: Path,
    shape: tuple[int, ...],
    teacher: Teacher,
    source: ImageSource,
    draws: Tensor,
    augmentation: Augmentation,
    recipe: Recipe,
) -> None:
    marker = file.with_name("progress.json")
    parts = torch.arange(len(source)).split(BATCH)
    total = len(draws) * len(parts)
    done = _stated(marker, "passes")
    begun = isinstance(done, int) and 0 <= done <= total and _is_whole(file, shape)
    if not begun:
        done = 0
        for each in (marker, file.with_name("done.json"), file):
            each.unlink(missing_ok=True)
        _make_room(file, shape)
    targets = np.load(file, mmap_mode="r+")
    compute = _compute(teacher, recipe)
    with track_steps("showing the teacher its views", total=total, done=done) as show:
        for step in range(done, total):
            view, photos = step // len(parts), parts[step % len(parts)]
            images = source.images[photos].to(teacher.center.device)
            seen = augmentation.view(images, draws[view, photos])
            targets[photos.numpy(), view] = compute(seen).cpu().numpy()
            if (step + 1) % MARK_EVERY == 0:
                targets.flush()
                write_json(marker, {"passes": step + 1})
            show(step + 1, "")
    targets.flush()
    write_json(file.with_name("done.json"), {"shape": list(shape), "sha256": file_sha256(file)})
    marker.unlink(missing_ok=True)


def _compute(teacher: Teacher, recipe: Recipe) -> Callable[[Tensor], Tensor]:
    precision = resolve_precision(recipe.train.precision)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    kind = teacher.center.device.type

    @torch.inference_mode()
    def compute(view: Tensor) -> Tensor:
        with torch.autocast(kind, dtype, enabled=dtype is not None):
            return teacher(view).clamp(-60000, 60000).half()  # float16 ends at 65,504

    return compute


def _make_room(file: Path, shape: tuple[int, ...]) -> None:
    """Announce the size, and make a file of zeros that has all its bytes on the disk."""
    for half in file.parent.glob(".*.tmp"):  # of a killed process: nobody else is at work here
        half.unlink()
    needed, free = 2 * math.prod(shape), shutil.disk_usage(file.parent).free
    no_room = RecipeError(
        f"teacher.cache = {shape[1]}: needs {needed / 1e9:.1f} GB in {file.parent}, "
        f"{free / 1e9:.1f} GB are free",
        hint="lower teacher.cache, free disk space, or set HGKD_EDGE_CACHE to another disk",
    )
    if needed > free:
        raise no_room
    console.print(
        f"teacher.cache: {shape[1]} views of {shape[0]} images, {needed / 1e9:.2f} GB in "
        f"{file.parent}",
        soft_wrap=True,
    )
    with atomic_write(file) as temporary:
        with temporary.open("wb") as stream:
            header = {"descr": "<f2", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(stream, header)
        size = temporary.stat().st_size + needed
        with temporary.open("rb+") as stream:
            try:
                reserve(stream.fileno(), size)
            except OSError as error:
                raise no_room from error
            stream.truncate(size)  # where there is no way to reserve


def _content_hash(
    teacher: Teacher, source: ImageSource, recipe: Recipe, shape: tuple[int, ...]
) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(teacher.state_dict().items()):
        digest.update(f"{name} {list(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    parts = {
        "photos": source.fingerprint,
        "shape": shape,
        "layers": teacher.indices,
        "combine": teacher.combine,
        "teacher_size": teacher.size,
        "normalization": [teacher.mean, teacher.std],
        "image_size": recipe.data.size,
        "crop_scale": recipe.data.crop_scale,
        "augment": recipe.augment.model_dump(),
        "seed": recipe.seed,
        "precision": resolve_precision(recipe.train.precision),
        "device": teacher.center.device.type,  # a GPU cuts views without smoothing
    }
    digest.update(json.dumps(parts, sort_keys=True).encode())
    return digest.hexdigest()[:24]


def _generator(seed: int, view: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + 500_000 + view)
