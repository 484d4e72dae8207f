"""The frozen Transformer that provides the representation of an image."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hgkd_edge.data.augment import IMAGENET_MEAN, IMAGENET_STD, normalize
from hgkd_edge.distillation.teacher_network import block_indices, has_class_token, teacher_patch
from hgkd_edge.models.vit import encode_visible
from hgkd_edge.sparse.visible import indices

__all__ = ["Teacher"]

# A channel's spread at a position is at least this share of its spread over all positions. On
# ordinary images it is at least .36 in every channel of a ViT-S/14, and .87 for the bundled
# teacher.
SPREAD_FLOOR = 0.3
IMAGE_FLOOR = 0.03  # of the whole-image row: a mean over positions has a smaller spread


class Teacher(nn.Module):
    """Targets for the student: patch tokens, layer-normalized without affine (design: loss).

    The targets of an image are R rows: its N patch tokens and, with `embedding`, one vector for the
    whole image. That vector is the class token, or the mean of the patch tokens if there is no
    class token.

    Frozen: in evaluation mode and without gradients, whatever mode the student is in.

    Attributes:
        width: Channels D of the targets.
        center: Mean of every row, float [R, D], zero unless standardized.
        spread: Standard deviation of every channel, float [R, D], one unless standardized; the same
            for all patch tokens.

    Args:
        vit: A timm Transformer of plain patch tokens.
        layers: `last`, or indices of blocks whose normalized tokens are averaged.
        size: Height and width of its input in pixels.
        embedding: Whether targets include the whole-image row.
    """

    def __init__(
        self,
        vit: nn.Module,
        *,
        layers: str | list[int],
        size: tuple[int, int],
        embedding: bool = False,
    ) -> None:
        super().__init__()
        self.center: Tensor
        self.spread: Tensor
        self.vit = vit.eval().requires_grad_(False)
        self.size = size
        self.grid = tuple(side // teacher_patch(vit) for side in size)
        self.indices = block_indices(vit, layers)
        self.embedding = embedding
        self.width: int = vit.embed_dim  # type: ignore[assignment]
        rows = self.grid[0] * self.grid[1] + embedding
        config = getattr(vit, "pretrained_cfg", {})
        self.mean = tuple(config.get("mean", IMAGENET_MEAN))
        self.std = tuple(config.get("std", IMAGENET_STD))
        self.register_buffer("center", torch.zeros(rows, self.width))
        self.register_buffer("spread", torch.ones(rows, self.width))

    @torch.no_grad()
    def standardize(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """From now on, subtract every position's mean token from targets, and rescale channels.

        Most of what a masked autoencoder's tokens encode is their position. A student that predicts
        only the mean token would score well without learning anything else. A channel is divided by
        at least a fixed share of its spread over all positions and images, so that nearly constant
        channels do not make noise the target.

        Args:
            batches: The data for the statistics, as for `moments`: views as in training. Whole
                images would miss how much a crop changes.
        """
        center, squares = self.moments(batches)
        places = self.grid[0] * self.grid[1]
        within, total = self._spread_of(center, squares)
        tokens = within.clamp(min=SPREAD_FLOOR**2 * total)
        variance = (squares - center.square())[places:]  # of the whole-image row
        image = variance.clamp(min=IMAGE_FLOOR**2 * total)
        variance = torch.cat([tokens.expand(places, -1), image])
        self.center, self.spread = center, variance.clamp(min=1e-6).sqrt()

    @torch.no_grad()
    def between_images(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> float:
        """The share of the tokens' spread that lies between images at one position; channel median.

        Ranges from 0 (all images are equal) to 1.

        Args:
            batches: As for `moments`, with whole images: crops of equal images would differ.
        """
        within, total = self._spread_of(*self.moments(batches))
        return (within / total.clamp(min=1e-12)).clamp(0, 1).sqrt().median().item()

    def _spread_of(self, center: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Variance of every patch token channel, float [D]: at one position, and overall."""
        places = self.grid[0] * self.grid[1]
        center, squares = center[:places], squares[:places]
        total = squares.mean(dim=0) - center.mean(dim=0).square()
        return (squares - center.square()).mean(dim=0), total

    @torch.no_grad()
    def moments(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor]:
        """Mean and mean square of every row of the targets, float [R, D] each.

        Args:
            batches: Images float [B, 3, H, W] in [0, 1] and their visible tokens, bool [B, N]; None
                means whole images.
        """
        total, squares = torch.zeros_like(self.center), torch.zeros_like(self.center)
        count = torch.zeros_like(self.center[:, :1])  # [R, 1]
        for images, visible in batches:
            targets = self.targets(images, visible)  # [B, R, D], zero where not visible
            if visible is None:
                count += len(images)
            else:
                count[: visible.shape[1]] += visible.sum(dim=0)[:, None]
                count[visible.shape[1] :] += len(images)
            total += targets.sum(dim=0)
            squares += targets.square().sum(dim=0)
        count = count.clamp(min=1)
        return total / count, squares / count

    def targets(
        self, images: Tensor, visible: Tensor | None, per_image: int | None = None
    ) -> Tensor:
        """Targets from the visible tokens, bool [B, N], or from whole images: [B, R, D]."""
        if visible is None:
            return self(images)
        return self.forward_visible(images, visible, per_image)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Targets from whole images.

        Args:
            images: float [B, 3, H, W] in [0, 1], of any size.

        Returns:
            float32 [B, R, D], tokens on the row-major grid, with zero mean and unit variance over
            D; if standardized, over the images of the statistics instead.
        """
        pooled = self.embedding and has_class_token(self.vit)
        layers = self.vit.forward_intermediates(  # type: ignore[operator]
            self._prepare(images),
            indices=self.indices,
            norm=True,
            output_fmt="NLC",
            intermediates_only=True,
            return_prefix_tokens=pooled,
        )
        rows = [self._rows(*layer) if pooled else self._rows(layer) for layer in layers]
        return (torch.stack(rows).mean(dim=0) - self.center) / self.spread

    @torch.no_grad()
    def forward_visible(
        self, images: Tensor, visible: Tensor, per_image: int | None = None
    ) -> Tensor:
        """Targets from visible tokens only, as in a masked autoencoder's encoder.

        Args:
            images: float [B, 3, H, W] in [0, 1].
            visible: bool [B, N] on the token grid, the same number in every image.
            per_image: Number of visible tokens, if known; then nothing waits for the device.

        Returns:
            float32 [B, R, D], zero at masked tokens; the whole-image row is computed from the
            visible tokens.
        """
        if per_image is None:
            per_image = int(visible[0].sum())
        keep = indices(visible, per_image)  # [B, N_visible]
        tokens = encode_visible(self.vit, self._prepare(images), keep)  # type: ignore[arg-type]
        prefix = self.vit.num_prefix_tokens
        pooled = self.embedding and has_class_token(self.vit)
        rows = self._rows(tokens[:, prefix:], tokens[:, :prefix] if pooled else None)
        if self.embedding:  # the last row exists for any mask
            keep = torch.cat([keep, torch.full_like(keep[:, :1], visible.shape[1])], dim=1)
        rows = (rows - self.center[keep]) / self.spread[keep]
        targets = rows.new_zeros(len(images), len(self.center), self.width)
        return targets.scatter(1, keep[..., None].expand(-1, -1, self.width), rows)

    def _rows(self, tokens: Tensor, prefix: Tensor | None = None) -> Tensor:
        """A block's tokens [B, N, D], plus the whole-image row if wanted, normalized: [B, R, D]."""
        rows = F.layer_norm(tokens.float(), tokens.shape[-1:])
        if not self.embedding:
            return rows
        image = rows.mean(dim=1) if prefix is None else prefix[:, 0].float()  # [B, D]
        return torch.cat([rows, F.layer_norm(image, image.shape[-1:])[:, None]], dim=1)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode: a frozen teacher has no training mode."""
        return super().train(False)

    def _prepare(self, images: Tensor) -> Tensor:
        if tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        return normalize(images, self.mean, self.std)
