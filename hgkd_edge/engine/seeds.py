"""The random numbers of a training: each generator depends on the seed, a purpose and an index."""

from __future__ import annotations

from typing import Literal

import torch

__all__ = ["generator_of"]

Purpose = Literal["epoch order", "step", "cached view"]


def generator_of(seed: int, purpose: Purpose, index: int) -> torch.Generator:
    """A CPU generator that depends only on its arguments.

    Args:
        seed: The recipe's.
        purpose: What is drawn: the order of an epoch's images, the numbers of a step (views, masks,
            stochastic depth), or one of the views whose targets are cached.
        index: Number of the epoch, the step or the view.
    """
    number = {"epoch order": 2 * index, "step": 2 * index + 1, "cached view": 500_000 + index}
    return torch.Generator().manual_seed(seed * 1_000_003 + number[purpose])
