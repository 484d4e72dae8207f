"""Random views of images together with their label maps or boxes, on the device.

All random numbers come from the caller, one row per image of the global batch (see `augment.py`).
A view is an enlarged or reduced, shifted and mirrored canvas. It is axis-parallel, so boxes stay
boxes. Everything outside the canvas is gray and unlabeled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hgkd_edge.data.resize import IGNORED, PAD

__all__ = ["Zoom", "jitter", "random_zoom"]

SHOWN = 0.25  # a box with less than this share in view counts as absent
SMALLEST = 2.0  # so does a box with a side of fewer pixels


@dataclass(frozen=True)
class Zoom:
    """The part of the canvas that each view shows: view x maps to canvas `factor * x + shift`.

    Coordinates run from -1 to 1 over the canvas.

    Attributes:
        factor: float [B, 2] for x and y; below 1 enlarges, negative mirrors.
        shift: float [B, 2].
    """

    factor: Tensor
    shift: Tensor

    def images(self, canvas: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> views float32 [B, 3, H, W] in [0, 1]."""
        gray = PAD / 255
        grid = self._grid(canvas)
        return F.grid_sample(canvas.float() / 255 - gray, grid, align_corners=False) + gray

    def labels(self, labels: Tensor) -> Tensor:
        """Label maps uint8 [B, H, W] -> their views int64 [B, H, W]; 255 outside the canvas."""
        known = (IGNORED - labels.float())[:, None]  # so that the 0 of outside means ignored
        seen = F.grid_sample(known, self._grid(labels), mode="nearest", align_corners=False)
        return IGNORED - seen[:, 0].long()

    def boxes(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Boxes float [B, M, 5] (class, x1, y1, x2, y2) in view coordinates.

        Args:
            boxes: In pixels of the canvas.
            size: Height and width of canvas and views.

        Returns:
            [B, M, 5]; class -1 if the box is not, or not sufficiently, in view.
        """
        # Filled in on the device: a copy would make the host wait.
        sides = torch.stack([boxes.new_full((), side) for side in (size[1], size[0])])
        factor, shift = self.factor[:, None, None], self.shift[:, None, None]  # [B, 1, 1, 2]
        corners = boxes[..., 1:].unflatten(-1, (2, 2))  # [B, M, 2, 2]
        moved = ((2 * corners / sides - 1 - shift) / factor + 1) * sides / 2
        low, high = moved.amin(dim=2), moved.amax(dim=2)
        area = (high - low).prod(dim=-1)
        low, high = low.clamp(min=0).minimum(sides), high.clamp(min=0).minimum(sides)
        extent = high - low  # [B, M, 2]
        seen = (extent.amin(dim=-1) >= SMALLEST) & (extent.prod(dim=-1) >= SHOWN * area)
        label = torch.where(seen, boxes[..., 0], -torch.ones_like(area))
        return torch.cat([label[..., None], low, high], dim=-1)

    def _grid(self, canvas: Tensor) -> Tensor:
        """The canvas position of every pixel of a view, float [B, H, W, 2]."""
        height, width = canvas.shape[-2:]
        # Not `affine_grid`: it multiplies matrices, which autocast would do in half precision.
        across, down = (
            self.factor[:, axis : axis + 1] * _centers(side, canvas.device)
            + self.shift[:, axis : axis + 1]
            for axis, side in enumerate((width, height))
        )  # [B, W], [B, H]
        size = (-1, height, width)
        return torch.stack([across[:, None].expand(size), down[:, :, None].expand(size)], dim=-1)


def random_zoom(
    draws: Tensor, *, zoom: tuple[float, float], flip: bool, vertical_flip: bool
) -> Zoom:
    """Draw views.

    Args:
        draws: float [B, 5], uniform in [0, 1): scale, shift in x and y, mirror in x and y.
        zoom: Smallest and largest enlargement, drawn evenly on a logarithmic scale.
        flip: Mirror half of the images horizontally.
        vertical_flip: Also flip half of the images vertically, for images without an up.
    """
    low, high = math.log(zoom[0]), math.log(zoom[1])
    seen = torch.exp(-(low + draws[:, :1] * (high - low)))  # [B, 1], share of the canvas's sides
    # Enlarged, the view stays within the canvas; reduced, the canvas stays within the view.
    shift = (2 * draws[:, 1:3] - 1) * (1 - seen).abs()
    mirror = torch.where(draws[:, 3:5] < 0.5, -1.0, 1.0)
    for axis, wanted in enumerate((flip, vertical_flip)):
        if not wanted:
            mirror[:, axis] = 1.0
    return Zoom(seen * mirror, shift)


def jitter(images: Tensor, draws: Tensor, *, strength: float) -> Tensor:
    """Change contrast and brightness by up to `strength`.

    Args:
        images: float [B, 3, H, W] in [0, 1].
        draws: float [B, 2], uniform in [0, 1).
        strength: 0.2 draws both factors from [0.8, 1.2].
    """
    contrast, brightness = (1 + strength * (2 * draws - 1))[:, :, None, None, None].unbind(dim=1)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - mean) * contrast + mean * brightness).clamp(0, 1)


def _centers(side: int, device: torch.device) -> Tensor:
    """Positions of pixel centers, float [side] in (-1, 1)."""
    return (2 * torch.arange(side, device=device) + 1) / side - 1
