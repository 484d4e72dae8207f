"""From a canvas of uint8 pixels to the network input, on the device: crops, flips, colors.

All random numbers come from the caller, one row per image of the *global* batch. The same step
therefore draws the same crops on one process or on many, before or after a resume. Fine-tuning for
classification adds its own augmentation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad
from torchvision.ops import roi_align
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from hgkd_edge.data.to_device import to_device
from hgkd_edge.recipe_sections import DataConfig

__all__ = [
    "CROP_DRAWS",
    "DISTORT_DRAWS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "center_view",
    "distort",
    "normalize",
    "random_view",
    "training_view",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CROP_DRAWS, DISTORT_DRAWS = 5, 8  # uniform numbers per image

# Strengths as in DINO and LightlyTrain.
JITTERED, GRAY, BLURRED = 0.8, 0.2, 0.5  # shares of the images
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1
SIGMA = (0.1, 2.0)  # of the blur, in pixels
BLUR_RADIUS = math.ceil(3 * SIGMA[1])

# RGB to luma and two chroma axes (NTSC); torchvision's gray is the same luma.
TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def training_view(canvas: Tensor, draws: Tensor, data: DataConfig) -> Tensor:
    """`random_view` with a recipe's settings. Teacher and student share the same view."""
    return random_view(canvas, draws, size=data.size, scale=data.crop_scale, flip=data.flip)


def random_view(
    canvas: Tensor,
    draws: Tensor,
    *,
    size: tuple[int, int],
    scale: tuple[float, float],
    flip: bool,
) -> Tensor:
    """Random resized crop and horizontal flip, the augmentation of SparK and MAE.

    Args:
        canvas: uint8 [B, 3, H_canvas, W_canvas].
        draws: float [B, 5], uniform in [0, 1): area, aspect, top, left, flip. On the CPU, where
            the boxes are computed.
        size: Height and width of the result in pixels.
        scale: Smallest and largest share of the canvas's area.
        flip: Mirror half of the views.

    Returns:
        float32 [B, 3, H, W] in [0, 1].
    """
    boxes = [_box(row, canvas.shape[-2:], scale, flip) for row in draws.tolist()]
    if canvas.device.type == "cpu":
        return torch.stack([_cut(*each, size) for each in zip(canvas, boxes, strict=True)])
    return _cut_all(canvas, to_device(torch.tensor(boxes), canvas.device), size)


def _box(
    draws: Sequence[float], canvas: Sequence[int], scale: tuple[float, float], flip: bool
) -> tuple[int, int, int, int, bool]:
    """Top, left, height and width of a crop in pixels, and whether it is mirrored."""
    (area, aspect, top, left, mirror), (height, width) = draws, canvas
    share = scale[0] + area * (scale[1] - scale[0])
    # The aspect changes by a factor in [3/4, 4/3], except that of whole images.
    ratio = math.exp((2 * aspect - 1) * math.log(4 / 3)) if scale[0] < 1 else 1.0
    crop_height = min(height, round(height * math.sqrt(share / ratio)))
    crop_width = min(width, round(width * math.sqrt(share * ratio)))
    y, x = int(top * (height - crop_height + 1)), int(left * (width - crop_width + 1))
    return y, x, crop_height, crop_width, flip and mirror < 0.5


def _cut(image: Tensor, box: tuple[int, int, int, int, bool], size: tuple[int, int]) -> Tensor:
    """One crop of an image uint8 [3, H_canvas, W_canvas]: float32 [3, H, W] in [0, 1]."""
    y, x, height, width, mirrored = box
    view = image[:, y : y + height, x : x + width]
    view = F.resize(view, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    return (view.flip(-1) if mirrored else view).float() / 255


def _cut_all(canvas: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The crops of all images at once; equal to `_cut` except for rounding and smoothing.

    On a GPU, launching a kernel per image takes longer than its work. Smoothing is not needed: a
    crop is at most 8/7 as large as its view, so aliasing is negligible.

    Args:
        boxes: int64 [B, 5], as `_box` returns.
    """
    top, left, height, width, mirrored = boxes.T  # [B] each
    number = torch.arange(len(boxes), device=boxes.device)
    regions = torch.stack([number, left, top, left + width, top + height], dim=1)  # [B, 5]
    pixels = canvas.float() / 255
    views = roi_align(pixels, regions.to(pixels), size, sampling_ratio=1, aligned=True)
    return torch.where(mirrored[:, None, None, None] > 0, views.flip(-1), views)  # [B, 3, H, W]


def distort(view: Tensor, draws: Tensor) -> Tensor:
    """Color jitter, random grayscale and Gaussian blur, with separate draws for each image.

    Brightness and contrast follow torchvision's definitions. Saturation, hue and grayscale scale
    and rotate the two chroma axes, so the luma of every pixel is unchanged. No value is read on the
    host.

    Args:
        view: float32 [B, 3, H, W] in [0, 1].
        draws: float [B, 8], uniform in [0, 1), on the same device: whether to jitter, brightness,
            contrast, saturation, hue, grayscale, whether to blur, and how much.

    Returns:
        float32 [B, 3, H, W] in [0, 1].
    """
    jitter, brightness, contrast, saturation, hue, gray, blur, sigma = draws.T  # [B] each
    centered = 2 * torch.stack([brightness, contrast, saturation, hue]) - 1  # in [-1, 1)
    centered = centered * (jitter < JITTERED)
    with torch.autocast(view.device.type, enabled=False):
        view = (view * _each(1 + BRIGHTNESS * centered[0])).clamp(0, 1)
        mean = F.rgb_to_grayscale(view).mean(dim=(1, 2, 3), keepdim=True)
        view = (mean + (view - mean) * _each(1 + CONTRAST * centered[1])).clamp(0, 1)
        chroma = (1 + SATURATION * centered[2]) * (gray >= GRAY)
        view = _recolor(view, chroma, 2 * math.pi * HUE * centered[3])
        return _blur(view, SIGMA[0] + sigma * (SIGMA[1] - SIGMA[0]), blur < BLURRED)


def _each(values: Tensor) -> Tensor:
    """Reshape [B] to [B, 1, 1, 1]."""
    return values[:, None, None, None]


def _recolor(view: Tensor, chroma: Tensor, angle: Tensor) -> Tensor:
    """Scale the chroma of images f[B, 3, H, W] by [B] and rotate it by angles [B]; luma stays."""
    to_yiq = _per_channel(sum(TO_YIQ, ()), view).view(3, 3)
    along, across, zero = chroma * angle.cos(), chroma * angle.sin(), torch.zeros_like(chroma)
    rows = (zero + 1, zero, zero), (zero, along, -across), (zero, across, along)
    turn = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)  # [B, 3, 3]
    change = torch.linalg.inv_ex(to_yiq)[0] @ turn @ to_yiq  # [B, 3, 3]
    return torch.einsum("bij,bjhw->bihw", change, view).clamp(0, 1)


def _blur(view: Tensor, sigma: Tensor, blurred: Tensor) -> Tensor:
    """Gaussian blur of images f[B, 3, H, W], each by its sigma [B]; `blurred` bool [B]."""
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=view.device)
    sigma = torch.where(blurred, sigma, SIGMA[0])  # the smallest one changes nothing
    kernels = (-0.5 * (offsets / sigma[:, None]).square()).exp()  # [B, k]
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).repeat_interleave(3, dim=0)
    planes = view.reshape(1, -1, *view.shape[2:])  # [1, B*3, H, W]
    wide = pad(planes, [BLUR_RADIUS] * 4, mode="reflect")
    wide = conv2d(wide, kernels[:, None, None, :], groups=len(kernels))
    return conv2d(wide, kernels[:, None, :, None], groups=len(kernels)).reshape(view.shape)


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
    """Constants [C, 1, 1]; filled in on the device, because a copy would make the host wait."""
    return torch.stack([like.new_full((1, 1), value) for value in values])
