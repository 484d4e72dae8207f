"""The frozen Transformer, asked for its representation of an image."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hgkd_edge.data.augment import IMAGENET_MEAN, IMAGENET_STD, normalize
from hgkd_edge.distillation.transformer import block_indices, has_class_token, teacher_patch
from hgkd_edge.models.vit import encode_visible
from hgkd_edge.sparse.visible import indices

__all__ = ["Teacher"]

# A channel's spread at a place is at least this share of its spread over all places. On ordinary
# photos it is .36 and more in every channel of a ViT-S/14, .87 and more of the bundled teacher.
SPREAD_FLOOR = 0.3
IMAGE_FLOOR = 0.03  # of the row of the whole image: a mean over places spreads less by itself


class Teacher(nn.Module):
    """Targets for the student: patch tokens, layer-normalized without affine (design: loss).

    The targets of an image are R rows: its N patch tokens and, with `embedding`, one vector for the
    whole image: the class token, or the mean of the patch tokens where there is no class token.

    Frozen: in evaluation mode and without gradients, whatever the student does.

    Attributes:
        width: Channels D of the targets.
        center: Mean of every row, float [R, D], zero unless standardized.
        spread: Standard deviation of every channel, float [R, D], one unless standardized; the same
            for all patch tokens.

    Args:
        vit: A timm Transformer of plain patch tokens.
        layers: `last`, or indices of blocks whose normalized tokens are combined.
        size: Height and width in pixels that it sees.
        combine: `mean` of the blocks' tokens, or `concat`: one block's channels after the other's.
        embedding: Whether targets hold the row of the whole image.
    """

    def __init__(
        self,
        vit: nn.Module,
        *,
        layers: str | list[int],
        size: tuple[int, int],
        combine: str = "mean",
        embedding: bool = False,
    ) -> None:
        super().__init__()
        self.center: Tensor
        self.spread: Tensor
        self.vit = vit.eval().requires_grad_(False)
        self.size = size
        self.grid = tuple(side // teacher_patch(vit) for side in size)
        self.indices = block_indices(vit, layers)
        self.combine, self.embedding = combine, embedding
        blocks = len(self.indices) if combine == "concat" else 1
        self.width: int = blocks * vit.embed_dim  # type: ignore[operator,assignment]
        rows = self.grid[0] * self.grid[1] + embedding
        config = getattr(vit, "pretrained_cfg", {})
        self.mean = tuple(config.get("mean", IMAGENET_MEAN))
        self.std = tuple(config.get("std", IMAGENET_STD))
        self.register_buffer("center", torch.zeros(rows, self.width))
        self.register_buffer("spread", torch.ones(rows, self.width))

    @torch.no_grad()
    def standardize(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> float:
        """From now on, take the mean token of every place from targets, and even out channels.

        Most of what a masked autoencoder's tokens hold is where they are: a student that has
        learned the mean token looks good and knows nothing. A camera that never moves gives images
        that are nearly equal at every place. There a channel is divided by no less than a share of
        its spread over all places and images; otherwise noise would become the target.

        Args:
            batches: What the statistics are taken from, as for `moments`.

        Returns:
            How much of the tokens' spread lies between images at one place, from 0 (all images
            are equal) to 1; the median over channels.
        """
        center, squares = self.moments(batches)
        variance = squares - center.square()  # [R, D], within places
        places = self.grid[0] * self.grid[1]
        within = variance[:places].mean(dim=0)  # [D]
        total = squares[:places].mean(dim=0) - center[:places].mean(dim=0).square()  # [D]
        tokens = within.clamp(min=SPREAD_FLOOR**2 * total)
        image = variance[places:].clamp(min=IMAGE_FLOOR**2 * total)
        variance = torch.cat([tokens.expand(places, -1), image])
        self.center, self.spread = center, variance.clamp(min=1e-6).sqrt()
        return (within / total.clamp(min=1e-12)).clamp(0, 1).sqrt().median().item()

    @torch.no_grad()
    def moments(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor]:
        """Mean and mean square of every row of the targets, float [R, D] each.

        Args:
            batches: Images float [B, 3, H, W] in [0, 1] and their visible tokens, bool [B, N]; None
                for whole images.
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
            float32 [B, R, D], tokens on the row-major grid, zero mean and unit variance over D; if
            standardized, over the images that the statistics are from.
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
        return (self._combined(rows) - self.center) / self.spread

    @torch.no_grad()
    def forward_visible(
        self, images: Tensor, visible: Tensor, per_image: int | None = None
    ) -> Tensor:
        """Targets from visible tokens only, as a masked autoencoder's encoder sees them.

        Args:
            images: float [B, 3, H, W] in [0, 1].
            visible: bool [B, N] on the token grid, as many visible in every image.
            per_image: How many, if that is known: then nothing waits for the device.

        Returns:
            float32 [B, R, D], zero at masked tokens; the row of the whole image is what the visible
            tokens make of it.
        """
        if per_image is None:
            per_image = int(visible[0].sum())
        keep = indices(visible, per_image)  # [B, N_visible]
        tokens = encode_visible(self.vit, self._prepare(images), keep)  # type: ignore[arg-type]
        prefix = self.vit.num_prefix_tokens
        pooled = self.embedding and has_class_token(self.vit)
        rows = self._rows(tokens[:, prefix:], tokens[:, :prefix] if pooled else None)
        if self.embedding:  # the last row is there whatever is visible
            keep = torch.cat([keep, torch.full_like(keep[:, :1], visible.shape[1])], dim=1)
        rows = (rows - self.center[keep]) / self.spread[keep]
        targets = rows.new_zeros(len(images), len(self.center), self.width)
        return targets.scatter(1, keep[..., None].expand(-1, -1, self.width), rows)

    def _rows(self, tokens: Tensor, prefix: Tensor | None = None) -> Tensor:
        """A block's tokens [B, N, D], and the image's row if wanted, normalized: [B, R, D]."""
        rows = F.layer_norm(tokens.float(), tokens.shape[-1:])
        if not self.embedding:
            return rows
        image = rows.mean(dim=1) if prefix is None else prefix[:, 0].float()  # [B, D]
        return torch.cat([rows, F.layer_norm(image, image.shape[-1:])[:, None]], dim=1)

    def _combined(self, blocks: list[Tensor]) -> Tensor:
        """The targets of one image from those of its blocks."""
        if self.combine == "concat":
            return torch.cat(blocks, dim=-1)
        return torch.stack(blocks).mean(dim=0)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode: a frozen teacher has no training mode."""
        return super().train(False)

    def _prepare(self, images: Tensor) -> Tensor:
        if tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        return normalize(images, self.mean, self.std)
