"""The teacher's targets for a few views per image, computed once and stored on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hgkd_edge.cells import counted
from hgkd_edge.console import console, make_console, track_steps
from hgkd_edge.data.augment import CROP_DRAWS, training_view
from hgkd_edge.data.sources import ImageSource
from hgkd_edge.distillation.teacher import Teacher
from hgkd_edge.distillation.teacher_network import has_class_token
from hgkd_edge.engine.seeds import generator_of
from hgkd_edge.engine.setup import resolve_precision
from hgkd_edge.errors import RecipeError, RunError
from hgkd_edge.files import (
    atomic_write,
    cache_dir,
    cache_limit,
    file_sha256,
    locked,
    reserve,
    write_json,
)
from hgkd_edge.parsing import parse_json, read_text
from hgkd_edge.processes import is_first_elsewhere, on_main_for_long, rank
from hgkd_edge.recipe import Recipe

__all__ = ["BATCH", "TargetCache", "cached_targets", "target_pass"]

BATCH = 64  # images of one teacher pass
REMIND_EVERY = 600  # seconds
MARK_EVERY = 20  # passes between two resume points


@dataclass(frozen=True)
class TargetCache:
    """Targets for the views of every image.

    Attributes:
        targets: Float16 [n, views, R, D], a memory map.
        draws: Float32 [views, n, k]: random numbers of each view (`training_view`).
        folder: Its folder on disk.
    """

    targets: np.ndarray
    draws: Tensor
    folder: Path

    def views(self, photos: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The draws of one view of each image, and the teacher's targets for that view.

        Args:
            photos: Indices of the images, int64 [B], on the CPU.
            chosen: Uniform in [0, 1), float [B], on the CPU: selects the view.

        Returns:
            Float32 [B, k], and float16 [B, R, D], both on the CPU: which halves the copy to a GPU.
        """
        view = (chosen * len(self.draws)).long().clamp(max=len(self.draws) - 1)
        rows = self.targets[photos.numpy(), view.numpy()]  # [B, R, D]
        return self.draws[view, photos], torch.from_numpy(rows)


def require_decoded(source: ImageSource, recipe: Recipe) -> None:
    """Refuse `teacher.cache` for streamed images.

    Raises:
        RecipeError: The images are streamed.
    """
    if recipe.teacher.cache and source.streamed:
        raise RecipeError(
            "teacher.cache: needs the images decoded in memory, these are streamed",
            hint="--set data.decode=once, or --set teacher.cache=0",
        )


def waiting(what: str, folder: Path, alive: Callable[[], None]) -> Callable[[int], None]:
    """For `locked`: shows progress to other processes, and names the folder from time to time."""

    def wait(seconds: int) -> None:
        alive()
        if seconds % REMIND_EVERY == 0:
            console.print(f"{what} in {folder} ({seconds // 60} min)", soft_wrap=True)

    return wait


def cached_targets(teacher: Teacher, source: ImageSource, recipe: Recipe) -> TargetCache:
    """Load the targets of `teacher.cache` views per image from disk, or compute them.

    If a call is interrupted, the next one continues. Targets are stored in the cache folder under a
    hash of everything that determines them: teacher, images, views. If a new entry would exceed
    `cache_limit` or the disk, other entries are removed, least recently used first.

    Args:
        teacher: The teacher with its weights, already standardized if requested.
        source: Training images, kept in memory.
        recipe: The whole recipe.

    Raises:
        RecipeError: The images are streamed, or the disk has no room.
    """
    require_decoded(source, recipe)
    draws = torch.stack(
        [
            torch.rand(len(source), CROP_DRAWS, generator=generator)
            for view in range(recipe.teacher.cache)
            for generator in [generator_of(recipe.seed, "cached view", view)]
        ]
    )
    shape = (len(source), len(draws), *teacher.center.shape)

    def find_or_fill(alive: Callable[[], None]) -> Path:
        name = _content_hash(teacher, source, recipe, shape)
        file = cache_dir() / "targets" / name / "targets.npy"

        what = "teacher.cache: waiting for another run that computes the same targets"
        with locked(file.parent, waiting(what, file.parent, alive)):
            if _is_filled(file, shape):
                _say_found(file)
            else:
                _fill(file, shape, teacher, source, draws, recipe, alive)
            os.utime(file)  # marks the entry as recently used
        return file

    if is_first_elsewhere():
        others = make_console(stderr=True)
        others.print(f"process {rank()}: waiting for the main process to fill teacher.cache")
    # Other processes use its result: their own statistics may round differently.
    file = on_main_for_long(find_or_fill)
    return TargetCache(np.load(file, mmap_mode="r"), draws, file.parent)


def _say_found(file: Path) -> None:
    console.print(
        f"teacher.cache: targets found in {file.parent}, {file.stat().st_size / 1e9:.2f} GB",
        soft_wrap=True,
    )


def _is_filled(file: Path, shape: tuple[int, ...]) -> bool:
    """Whether all targets are on disk, unchanged since they were written."""
    stated = _stated(file.with_name("done.json"), "sha256")
    return stated is not None and _is_whole(file, shape) and file_sha256(file) == stated


def _stated(marker: Path, key: str) -> Any:
    """The content of a marker file; None if it is missing or damaged."""
    try:
        return parse_json(read_text(marker))[key]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _is_whole(file: Path, shape: tuple[int, ...]) -> bool:
    """Whether a file completely holds an array of this shape.

    Opening a truncated file for writing would silently fill it up with zeros.
    """
    try:
        if file.is_symlink():  # its target would be overwritten
            return False
        found = np.lib.format.open_memmap(file, mode="r")
    except Exception:  # numpy parses the header as Python: damaged, it may raise anything
        return False
    return (found.shape, found.dtype) == (shape, np.float16)


def _fill(
    file: Path,
    shape: tuple[int, ...],
    teacher: Teacher,
    source: ImageSource,
    draws: Tensor,
    recipe: Recipe,
    alive: Callable[[], None],
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
    compute = target_pass(teacher, recipe)
    with track_steps("computing teacher targets", total=total, done=done) as show:
        for step in range(done, total):
            view, photos = step // len(parts), parts[step % len(parts)]
            images = source.images[photos].to(teacher.center.device)
            seen = training_view(images, draws[view, photos], recipe.data)
            targets[photos.numpy(), view] = compute(seen).cpu().numpy()
            if (step + 1) % MARK_EVERY == 0:
                targets.flush()
                write_json(marker, {"passes": step + 1})
            show(step + 1, "")
            alive()
    targets.flush()
    write_json(file.with_name("done.json"), {"shape": list(shape), "sha256": file_sha256(file)})
    marker.unlink(missing_ok=True)


def target_pass(teacher: Teacher, recipe: Recipe) -> Callable[[Tensor], Tensor]:
    """From views float32 [B, 3, H, W] to their targets as stored, float16 [B, R, D]."""
    precision = resolve_precision(recipe.train.precision)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    kind = teacher.center.device.type

    @torch.inference_mode()
    def compute(view: Tensor) -> Tensor:
        with torch.autocast(kind, dtype, enabled=dtype is not None):
            return teacher(view).clamp(-60000, 60000).half()  # float16 ends at 65,504

    return compute


def _make_room(file: Path, shape: tuple[int, ...]) -> None:
    """Report the size, and create a file of zeros with all its bytes allocated on disk."""
    for half in file.parent.glob(".*.tmp"):  # left by a killed process: no other process works here
        half.unlink()
    needed, free = 2 * math.prod(shape), shutil.disk_usage(file.parent).free
    others = _entries(file.parent.parent, but=file)
    no_room = RecipeError(
        f"teacher.cache = {shape[1]}: needs {needed / 1e9:.1f} GB in {file.parent}, "
        f"{free / 1e9:.1f} GB are free",
        hint="lower teacher.cache, free disk space, or set HGKD_EDGE_CACHE to another disk",
    )
    taken = sum(about.st_size for about in others.values())
    if needed > free + taken:
        raise no_room
    _remove(others, needed - min(cache_limit() - taken, free))
    if needed > shutil.disk_usage(file.parent).free:  # some entries are being filled
        raise no_room
    console.print(
        f"teacher.cache: {counted(shape[1], 'view')} of {counted(shape[0], 'image')}, "
        f"{needed / 1e9:.2f} GB in {file.parent}",
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
            stream.truncate(size)  # if space cannot be reserved


class _InUseError(Exception):
    """Another process is filling this entry."""


def _entries(folder: Path, *, but: Path) -> dict[Path, os.stat_result]:
    """All target files except one, least recently used first."""
    found = {}
    for file in folder.glob("*/targets.npy"):
        with contextlib.suppress(FileNotFoundError):  # another process has just removed it
            found[file] = file.lstat()
    found.pop(but, None)
    return dict(sorted(found.items(), key=lambda entry: entry[1].st_mtime))


def _remove(entries: dict[Path, os.stat_result], excess: float) -> None:
    """Remove entries in the given order until `excess` bytes are freed.

    A training that has an entry open keeps it until it ends.
    """
    for file, about in entries.items():
        if excess <= 0:
            return
        with contextlib.suppress(_InUseError, OSError, RunError), locked(file.parent, _refuse):
            for name in ("done.json", "progress.json", file.name):
                file.with_name(name).unlink(missing_ok=True)
            excess -= about.st_size
            console.print(
                f"teacher.cache: removed {file.parent}, {about.st_size / 1e9:.2f} GB last used on "
                f"{date.fromtimestamp(about.st_mtime)}",
                soft_wrap=True,
            )


def _refuse(_: int) -> None:
    raise _InUseError


def _content_hash(
    teacher: Teacher, source: ImageSource, recipe: Recipe, shape: tuple[int, ...]
) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(teacher.state_dict().items()):
        digest.update(f"{name} {list(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    parts = {
        "photos": source.fingerprint,
        "network": [recipe.teacher.name, recipe.teacher.args],  # what weights do not determine
        "shape": shape,
        "layers": teacher.indices,
        "class_token": has_class_token(teacher.vit),
        "teacher_size": teacher.size,
        "normalization": [teacher.mean, teacher.std],
        "image_size": recipe.data.size,
        "crop_scale": recipe.data.crop_scale,
        "flip": recipe.data.flip,
        "seed": recipe.seed,
        "precision": resolve_precision(recipe.train.precision),
        "device": teacher.center.device.type,  # a GPU cuts views without smoothing
    }
    digest.update(json.dumps(parts, sort_keys=True).encode())
    return digest.hexdigest()[:24]
