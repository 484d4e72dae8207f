"""From a canvas of uint8 pixels to what a network sees, on the device.

All random numbers come from the caller, one row per image of the *global* batch, so that the same
step draws the same crops on one process or on many, before or after a resume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from hgkd_edge.data.transfer import to_device

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "center_view", "normalize", "random_view"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def random_view(
    canvas: Tensor, draws: Tensor, *, size: tuple[int, int], scale: tuple[float, float]
) -> Tensor:
    """Random resized crop and horizontal flip, the augmentation of SparK and MAE.

    Args:
        canvas: uint8 [B, 3, H_canvas, W_canvas].
        draws: float [B, 5], uniform in [0, 1): area, aspect, top, left, flip. On the CPU, where
            the boxes are computed.
        size: Height and width of the result in pixels.
        scale: Smallest and largest share of the canvas's area.

    Returns:
        float32 [B, 3, H, W] in [0, 1].
    """
    boxes = [_box(row, canvas.shape[-2:], scale) for row in draws.tolist()]
    if canvas.device.type == "cpu":
        return torch.stack([_cut(*each, size) for each in zip(canvas, boxes, strict=True)])
    return _cut_all(canvas, to_device(torch.tensor(boxes), canvas.device), size)


def _box(
    draws: Sequence[float], canvas: Sequence[int], scale: tuple[float, float]
) -> tuple[int, int, int, int, bool]:
    """Top, left, height and width of a crop in pixels, and whether it is mirrored."""
    (area, aspect, top, left, flip), (height, width) = draws, canvas
    share = scale[0] + area * (scale[1] - scale[0])
    ratio = math.exp((2 * aspect - 1) * math.log(4 / 3))  # aspect change in [3/4, 4/3]
    crop_height = min(height, round(height * math.sqrt(share / ratio)))
    crop_width = min(width, round(width * math.sqrt(share * ratio)))
    y, x = int(top * (height - crop_height + 1)), int(left * (width - crop_width + 1))
    return y, x, crop_height, crop_width, flip < 0.5


def _cut(image: Tensor, box: tuple[int, int, int, int, bool], size: tuple[int, int]) -> Tensor:
    """One crop of an image uint8 [3, H_canvas, W_canvas]: float32 [3, H, W] in [0, 1]."""
    y, x, height, width, mirrored = box
    view = image[:, y : y + height, x : x + width]
    view = F.resize(view, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    return (view.flip(-1) if mirrored else view).float() / 255


def _cut_all(canvas: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The crops of all images at once, as `_cut` but for rounding and smoothing.

    On a GPU, starting a kernel for each image takes longer than its work. Without smoothing: a crop
    is at most 8/7 as large as its view, which leaves nothing to alias.

    Args:
        boxes: int64 [B, 5], what `_box` gives.
    """
    top, left, height, width, mirrored = boxes.T  # [B] each
    number = torch.arange(len(boxes), device=boxes.device)
    regions = torch.stack([number, left, top, left + width, top + height], dim=1)  # [B, 5]
    pixels = canvas.float() / 255
    views = roi_align(pixels, regions.to(pixels), size, sampling_ratio=1, aligned=True)
    return torch.where(mirrored[:, None, None, None] > 0, views.flip(-1), views)  # [B, 3, H, W]


def center_view(canvas: Tensor, *, size: tuple[int, int]) -> Tensor:
    """The deterministic view for evaluation: the whole canvas, resized.

    Args:
        canvas: uint8 [B, 3, H_canvas, W_canvas].
        size: Height and width of the result in pixels.

    Returns:
        float32 [B, 3, H, W] in [0, 1].
    """
    return F.resize(canvas, list(size), antialias=True).float() / 255


def normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel, [B, 3, H, W]."""
    return F.normalize(images, *(_per_channel(values, images) for values in (mean, std)))


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Constants [C, 1, 1]; filled in on the device, because a copy makes the host wait for it."""
    return torch.stack([like.new_full((1, 1), value) for value in values])
