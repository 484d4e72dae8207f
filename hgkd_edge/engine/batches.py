"""How a global batch is divided, and its memory format."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hgkd_edge.cells import counted
from hgkd_edge.engine.interface import Inputs
from hgkd_edge.errors import RecipeError
from hgkd_edge.recipe_sections import TrainConfig

__all__ = ["channels_last", "chunks", "global_batch"]


def channels_last(each: Tensor | float) -> Tensor | float:
    """Images [B, C, H, W] in the memory format of the fastest convolutions; others unchanged."""
    if not isinstance(each, Tensor) or each.dim() != 4:
        return each
    return each.contiguous(memory_format=torch.channels_last)


def chunks(inputs: Inputs, parts: int) -> Iterator[Inputs]:
    """The inputs of every accumulation step; values that are not tensors are shared by all."""
    columns = [x.chunk(parts) if isinstance(x, Tensor) else (x,) * parts for x in inputs]
    return zip(*columns, strict=True)


def global_batch(config: TrainConfig, photos: int, world: int, *, key: str) -> int:
    """Images per batch: as configured, or all if there are fewer; split equally among processes.

    Raises:
        RecipeError: The batch does not divide among processes and accumulation steps.
    """
    size, parts = min(config.batch_size, photos), world * config.accumulate
    if size % parts == 0:
        return size
    what = f"a batch of all {counted(photos, 'image')} does" if size == photos else f"{size} does"
    fits, processes = size // parts * parts, counted(world, "process", "processes")
    raise RecipeError(
        f"{key} = {config.batch_size}: {what} not divide among {processes} x "
        f"{config.accumulate} accumulation steps",
        hint=f"use {fits}" if fits else f"use at most {size} in processes x accumulation steps",
    )
