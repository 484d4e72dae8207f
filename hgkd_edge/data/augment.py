"""From a canvas of uint8 pixels to what a network sees, on the device.

All random numbers come from the caller, one row per image of the *global* batch, so that the same
step draws the same crops on one process or on many, before or after a resume.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "center_view", "normalize", "random_view"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def random_view(
    canvas: Tensor, draws: Tensor, *, size: tuple[int, int], scale: tuple[float, float]
) -> Tensor:
    """Random resized crop and horizontal flip, the augmentation of SparK and MAE.

    Args:
        canvas: uint8 [B, 3, H_canvas, W_canvas].
        draws: float [B, 5], uniform in [0, 1): area, aspect, top, left, flip.
        size: Height and width of the result in pixels.
        scale: Smallest and largest share of the canvas's area.

    Returns:
        float32 [B, 3, H, W] in [0, 1].
    """
    height, width = canvas.shape[-2:]
    views = []
    for image, (area, aspect, top, left, flip) in zip(canvas, draws.tolist(), strict=True):
        share = scale[0] + area * (scale[1] - scale[0])
        ratio = math.exp((2 * aspect - 1) * math.log(4 / 3))  # aspect change in [3/4, 4/3]
        crop_height = min(height, round(height * math.sqrt(share / ratio)))
        crop_width = min(width, round(width * math.sqrt(share * ratio)))
        y, x = int(top * (height - crop_height + 1)), int(left * (width - crop_width + 1))
        view = image[:, y : y + crop_height, x : x + crop_width]
        view = F.resize(view, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
        views.append(view.flip(-1) if flip < 0.5 else view)
    return torch.stack(views).float() / 255  # [B, 3, H, W]


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
    return F.normalize(images, list(mean), list(std))
