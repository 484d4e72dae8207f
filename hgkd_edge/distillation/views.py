"""Draws masks for the grids of student and teacher, and the views that each of them sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from hgkd_edge.data.augment import CROP_DRAWS, training_view
from hgkd_edge.distillation.masks import random_masks, visible_count
from hgkd_edge.distillation.parts import Parts
from hgkd_edge.engine import Draws
from hgkd_edge.models.decoder import upsample_mask
from hgkd_edge.recipe import Recipe

__all__ = [
    "draw_visible",
    "on_patches",
    "on_tokens",
    "random_views",
    "teacher_views",
    "visible_patches",
]


def random_views(images: Tensor, draws: Draws, recipe: Recipe) -> Tensor:
    """Training views float32 [B, 3, H, W] of canvases uint8 [B, 3, H_canvas, W_canvas]."""
    return training_view(images, draws.on_cpu(len(images), CROP_DRAWS), recipe.data)


def draw_visible(draws: Draws, count: int, parts: Parts, ratio: float) -> Tensor:
    """Masks for `count` images on the grid of the student's deepest stride, bool [B, h, w]."""
    grid = parts.mask_grid
    return on_patches(random_masks(draws.uniform(count, grid[0] * grid[1]), grid, ratio), parts)


def on_patches(masks: Tensor, parts: Parts) -> Tensor:
    """Convert masks from the mask grid to the student's deepest-stride grid: bool [B, h, w]."""
    return upsample_mask(masks, [side // parts.encoder.patch for side in parts.spec.size])


def visible_patches(parts: Parts, ratio: float) -> int:
    """Number of visible patches in a mask of `draw_visible`, the same for every image."""
    rows, columns = (side // parts.encoder.patch for side in parts.spec.size)
    h, w = parts.mask_grid
    return visible_count((h, w), ratio) * (rows // h) * (columns // w)


def on_tokens(visible: Tensor, parts: Parts) -> Tensor:
    """Convert masks bool [B, h, w] to the teacher's tokens: bool [B, N]."""
    return upsample_mask(visible, parts.token_grid).flatten(1)


def teacher_views(
    batches: Iterable[Tensor], draws: Draws, parts: Parts, recipe: Recipe
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The teacher's input in training: views, and their visible tokens (None: all)."""
    for images in batches:
        view = random_views(images.to(draws.device), draws, recipe)
        if recipe.teacher.view == "full":
            yield view, None
        else:
            visible = draw_visible(draws, len(view), parts, recipe.mask.highest_ratio)
            yield view, on_tokens(visible, parts)
