"""Mask sampling of distillation and iBOT; MAE draws its own (`models.mae`). `True = visible`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from hgkd_edge.errors import RecipeError

__all__ = [
    "BLOCK_DRAWS",
    "block_masks",
    "disjoint_masks",
    "mask_grid",
    "random_masks",
    "visible_count",
]

BLOCKS = 8  # maximum per image; few images need more to come close to their share
SMALLEST_BLOCK = 4  # patches
FLATTEST_BLOCK = 0.3  # height / width, or the other way round
BLOCK_DRAWS = 1 + 4 * BLOCKS  # uniform numbers per image


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
    """A sequence of masks for the same images that overlap as little as possible.

    Each mask takes the patches that were visible least often, with random ties. So every patch is
    visible once before any is visible twice, like cards dealt from shuffled decks.

    Args:
        draws: One float [B, h*w] per mask, uniform in [0, 1).
        grid: Rows h and columns w of the mask grid.
        ratio: Share of masked patches.

    Yields:
        bool [B, h, w], True = visible, each with the same number of visible patches.
    """
    times: Tensor | int = 0  # how often each patch was visible
    for noise in draws:
        visible = random_masks(noise + times, grid, ratio)
        yield visible
        times = visible.flatten(1) + times


def block_masks(draws: Tensor, grid: tuple[int, int], ratio: tuple[float, float]) -> Tensor:
    """Block-wise masks (BEiT, iBOT): rectangles until a drawn share is masked.

    Args:
        draws: float [B, BLOCK_DRAWS], uniform in [0, 1): the share, then area, aspect, top and left
            of every rectangle.
        grid: Rows h and columns w of the mask grid.
        ratio: Smallest and largest share of masked patches. Rounding to whole patches may miss it;
            at least one patch is masked.

    Returns:
        bool [B, h, w], True = visible.
    """
    h, w = grid
    rows, columns = torch.arange(h)[None, :, None], torch.arange(w)[None, None, :]
    share = ratio[0] + draws[:, 0, None, None] * (ratio[1] - ratio[0])
    wanted = (share * h * w).clamp(min=1)  # [B, 1, 1]
    masked = torch.zeros(len(draws), h, w, dtype=torch.bool)
    for block in draws[:, 1:].unflatten(1, (BLOCKS, 4)).unbind(dim=1):
        area, aspect, top, left = block.T[..., None, None]  # [B, 1, 1] each
        missing = wanted - masked.sum(dim=(1, 2), keepdim=True)
        area = SMALLEST_BLOCK + area * (missing - SMALLEST_BLOCK)  # between the two
        area = area.minimum(missing).clamp(min=1)
        flatness = torch.exp((2 * aspect - 1) * -math.log(FLATTEST_BLOCK))
        height = (area * flatness).sqrt().round().clamp(1, h)
        width = (area / height).round().clamp(1, w)
        y, x = (top * (h - height + 1)).floor(), (left * (w - width + 1)).floor()
        inside = (rows >= y) & (rows < y + height) & (columns >= x) & (columns < x + width)
        masked |= inside & (missing >= 1)
    return ~masked
