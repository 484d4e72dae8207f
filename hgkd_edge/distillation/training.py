"""What distillation provides to the training loop: views, masks, and the teacher's targets."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from hgkd_edge.data.augment import training_view
from hgkd_edge.data.to_device import to_device
from hgkd_edge.distillation.loss import StudentWithLoss
from hgkd_edge.distillation.masks import disjoint_masks
from hgkd_edge.distillation.parts import Parts
from hgkd_edge.distillation.target_cache import TargetCache
from hgkd_edge.distillation.teacher import Teacher
from hgkd_edge.distillation.views import (
    draw_visible,
    on_patches,
    on_tokens,
    random_views,
    visible_patches,
)
from hgkd_edge.engine import Draws, Inputs, Training
from hgkd_edge.recipe import Recipe

__all__ = ["Distilling"]


class Distilling(Training):
    """Training: predict the teacher's tokens; K masks of an image share one teacher pass."""

    def __init__(
        self,
        model: StudentWithLoss,
        teacher: Teacher,
        parts: Parts,
        recipe: Recipe,
        cache: TargetCache | None = None,
    ) -> None:
        self.model: nn.Module = model
        self.cache = cache
        self.teacher, self.parts, self.recipe = teacher, parts, recipe
        self.updates_per_batch = recipe.mask.per_image
        self.capturable = recipe.student.backend != "spconv"  # spconv counts its sites on the host

    def inputs(self, images: Tensor, labels: Tensor, draws: Draws) -> Iterator[Inputs]:
        parts = self.parts
        ratio = self.recipe.mask.ratio_at(draws.progress)
        shared: Tensor | None
        if self.cache is not None:
            chosen = draws.on_cpu(len(images), 1)[:, 0]
            drawn, rows = self.cache.views(draws.photos, chosen)
            view = training_view(images, drawn, self.recipe.data)
            shared = to_device(rows, images.device).float()
        else:
            view = random_views(images, draws, self.recipe)
            shared = self._shared_targets(view)
        per_image = visible_patches(parts, ratio)
        for visible in self._masks(draws, len(view), ratio):
            targets = shared
            if targets is None:
                tokens = on_tokens(visible, parts)
                seen = per_image * tokens[0].numel() // visible[0].numel()
                targets = self.teacher.targets(view, tokens, seen)
            yield view, visible, targets, per_image

    def _masks(self, draws: Draws, count: int, ratio: float) -> Iterator[Tensor]:
        """The masks of `count` images, one for every update of the batch, bool [B, h, w] each."""
        updates = range(self.updates_per_batch)
        if not self.recipe.mask.disjoint:
            yield from (draw_visible(draws, count, self.parts, ratio) for _ in updates)
            return
        grid = self.parts.mask_grid
        noise = (draws.uniform(count, grid[0] * grid[1]) for _ in updates)
        yield from (on_patches(mask, self.parts) for mask in disjoint_masks(noise, grid, ratio))

    def _shared_targets(self, view: Tensor) -> Tensor | None:
        """Targets that do not depend on the mask, [B, N, D]; None if each mask has its own."""
        if not self.recipe.loss.feature_weight:
            return view.new_zeros(len(view), 1)  # targets are unused: skip the teacher
        return self.teacher(view) if self.recipe.teacher.view == "full" else None
