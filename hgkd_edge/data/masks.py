"""Mask sampling. Everywhere in this project `True = visible`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from hgkd_edge.errors import RecipeError

__all__ = ["disjoint_masks", "mask_grid", "random_masks", "visible_count"]


def mask_grid(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Rows and columns of the mask grid.

    Raises:
        RecipeError: The patch does not divide the image.
    """
    height, width = size
    if height % patch or width % patch:
        fits = [max(patch, round(side / patch) * patch) for side in size]
        raise RecipeError(
            f"data.image_size {height}x{width}: the mask patch of {patch} px does not divide it",
            hint=f"set data.image_size to {fits[0] if fits[0] == fits[1] else fits}",
        )
    return height // patch, width // patch


def visible_count(grid: tuple[int, int], ratio: float) -> int:
    """Number of visible patches of a grid when `ratio` of them are masked.

    Raises:
        RecipeError: The ratio leaves nothing visible.
    """
    total = grid[0] * grid[1]
    count = round(total * (1 - ratio))
    if count < 1:
        raise RecipeError(
            f"mask.ratio {ratio} leaves nothing visible of {grid[0]}x{grid[1]} patches",
            hint=f"use at most {(total - 1) / total:.2f}, or a larger data.image_size",
        )
    return count


def random_masks(draws: Tensor, grid: tuple[int, int], ratio: float) -> Tensor:
    """Random masks, each with the same number of visible patches.

    Args:
        draws: float [B, h*w], uniform in [0, 1): the lowest are visible.
        grid: Rows h and columns w of the mask grid.
        ratio: Share of masked patches.

    Returns:
        bool [B, h, w], True = visible.
    """
    lowest = draws.argsort(dim=1)[:, : visible_count(grid, ratio)]  # [B, n_visible]
    visible = torch.zeros_like(draws, dtype=torch.bool).scatter_(1, lowest, True)
    return visible.view(-1, *grid)


def disjoint_masks(
    draws: Iterable[Tensor], grid: tuple[int, int], ratio: float
) -> Iterator[Tensor]:
    """Masks of the same images, one after the other, that overlap as little as possible.

    Each mask takes the patches that were visible least often, at random among equals. So every
    patch is visible once before any is visible twice, as if patches were dealt from shuffled decks.

    Args:
        draws: One float [B, h*w] per mask, uniform in [0, 1).
        grid: Rows h and columns w of the mask grid.
        ratio: Share of masked patches.

    Yields:
        bool [B, h, w], True = visible, each with the same number of visible patches.
    """
    times: Tensor | int = 0  # that each patch was visible
    for noise in draws:
        visible = random_masks(noise + times, grid, ratio)
        yield visible
        times = visible.flatten(1) + times
