"""Layers on a map of visible sites: convolution, pooling, padding, BatchNorm, resizing.

The rules in this module read a call's arguments and check that the result is again a map of whole
tiles. The engine of the chosen backend computes it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hgkd_edge.sparse.sites import Convolution, Padding, Pooling, SiteTensor, rule, unsupported
from hgkd_edge.sparse.within_site import _plain, visible_sites

NO_PADDING = Padding(0, 0, 0, 0, 0.0)


def pair(value: Any) -> tuple[int, int]:
    """A layer setting as (rows, columns)."""
    if isinstance(value, int):
        return value, value
    return (int(value[0]), int(value[0])) if len(value) == 1 else (int(value[0]), int(value[1]))


def output_tile(
    x: SiteTensor, before: int, after: int, kernel: int, stride: int, dilation: int, name: str
) -> int:
    """Side of the output's tiles along one axis; raises if unsupported.

    Args:
        before, after: Padding on the two sides of the map.

    Raises:
        ConversionError: The layer's output is not the map divided by the stride, or a tile cannot
            be divided by it.
    """
    t = x.side
    reached = t % stride == 0
    for patches in (x.engine.visible.h, x.engine.visible.w):
        side = patches * t
        out = (side + before + after - dilation * (kernel - 1) - 1) // stride + 1
        if not reached or out * stride != side:
            raise unsupported(
                name,
                f"(kernel {kernel}, stride {stride}, padding {before}+{after}) turns tiles of {t} "
                f"sites, a side of {side}, into a side of {out}: visible patches no longer line up",
            )
    return t // stride


def _unpadded(x: SiteTensor) -> SiteTensor:
    return x.like(x.payload)


@rule("conv2d")
def conv2d(
    func: Any,
    x: SiteTensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> SiteTensor:
    """Convolution of visible sites only, on the engine of the map."""
    if not isinstance(x, SiteTensor) or isinstance(weight, SiteTensor) or x.channels_last:
        raise unsupported("conv2d", "needs a masked map, channels first, and ordinary weights")
    if x.dim() != 4:
        raise unsupported("conv2d", f"on a map with {x.dim()} axes has no rule")
    stride, dilation = pair(stride), pair(dilation)
    kernel = (weight.shape[2], weight.shape[3])
    pads = _conv_padding(padding, kernel, dilation)
    waiting = x.padding or NO_PADDING
    if waiting.value != 0:
        raise unsupported("conv2d", f"after padding with {waiting.value} has no rule")
    before = (pads[0] + waiting.top, pads[1] + waiting.left)
    after = (pads[2] + waiting.bottom, pads[3] + waiting.right)
    for a in (0, 1):
        output_tile(x, before[a], after[a], kernel[a], stride[a], dilation[a], "conv2d")
    return x.engine.conv2d(
        _unpadded(x), weight, bias, Convolution(stride, before, after, dilation, groups)
    )


def _conv_padding(
    padding: Any, kernel: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Padding as (top, left, bottom, right); 'same' puts the extra site at the end, like torch."""
    if padding == "valid":
        return 0, 0, 0, 0
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2
    top, left = pair(padding)
    return top, left, top, left


@rule("pad")
def pad(
    func: Any, x: SiteTensor, pad: Any, mode: str = "constant", value: float | None = None
) -> SiteTensor:
    """Padding is recorded and applied by the next convolution or pooling ('same' padding)."""
    pad = [int(p) for p in pad]
    if not any(pad):
        return x
    if mode != "constant" or x.channels_last or any(pad[4:]) or min(pad) < 0:
        raise unsupported("pad", f"({pad}, mode '{mode}') has no rule")
    left, right, top, bottom = [*pad, 0, 0][:4]
    waiting, value = x.padding, float(value or 0.0)
    if waiting is not None:
        if waiting.value != value:
            raise unsupported("pad", "twice with different values has no rule")
        left, right = left + waiting.left, right + waiting.right
        top, bottom = top + waiting.top, bottom + waiting.bottom
    return SiteTensor.make(
        x.payload, x.engine, padding=Padding(left, right, top, bottom, value)
    )  # fmt: skip


@rule("max_pool2d", "max_pool2d_with_indices", "boolean_dispatch")
def max_pool2d(
    func: Any,
    x: SiteTensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> SiteTensor:
    """Sites outside the image do not count (-inf); a masked neighbor counts as zero."""
    if return_indices:
        raise unsupported("max_pool2d", "with indices has no rule")
    return _pool(x, "max", kernel_size, stride, padding, dilation, ceil_mode, True, None)


@rule("avg_pool2d")
def avg_pool2d(
    func: Any,
    x: SiteTensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> SiteTensor:
    """A masked neighbor counts as zero; the divisor is the same as in the dense layer."""
    return _pool(
        x, "avg", kernel_size, stride, padding, 1, ceil_mode, count_include_pad, divisor_override
    )


def _pool(
    x: SiteTensor,
    kind: str,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> SiteTensor:
    name = f"{kind}_pool2d"
    if x.channels_last or x.dim() != 4 or divisor is not None:
        raise unsupported(name, "with this layout or divisor has no rule")
    kernel = pair(kernel_size)
    stride = kernel if stride is None or stride == [] or stride == () else pair(stride)
    pads, dilation = pair(padding), pair(dilation)
    waiting = x.padding or NO_PADDING
    if waiting != NO_PADDING and (any(pads) or not count_include_pad):
        raise unsupported(name, "with its own padding after F.pad has no rule")
    before, after = (pads[0] + waiting.top, pads[1] + waiting.left), [0, 0]
    for a, extra in enumerate((waiting.bottom, waiting.right)):
        # ceil_mode reads past the end only if the last window is partly filled. On a map that
        # divides into whole tiles this happens only if the dense layer's size changes too.
        after[a] = pads[a] + extra
        side = (x.engine.visible.h, x.engine.visible.w)[a] * x.side
        left_over = (side + before[a] + after[a] - dilation[a] * (kernel[a] - 1) - 1) % stride[a]
        if ceil_mode and left_over:
            reach = after[a] + stride[a] - left_over
            output_tile(x, before[a], reach, kernel[a], stride[a], dilation[a], name)
            if kind == "avg":
                raise unsupported(name, "with a partly filled last window has no rule")
        else:
            output_tile(x, before[a], after[a], kernel[a], stride[a], dilation[a], name)
    # A layer's own padding never wins a maximum; padding added by F.pad has its value.
    outside = float("-inf") if kind == "max" and waiting == NO_PADDING else waiting.value
    how = Pooling(kind, kernel, stride, before, dilation, outside, count_include_pad)
    return x.engine.pool2d(_unpadded(x), how)


@rule("adaptive_avg_pool2d", "adaptive_max_pool2d")
def adaptive_pool2d(
    func: Any, x: SiteTensor, output_size: Any, return_indices: bool = False
) -> Tensor:
    """Pool to one value per image, over its visible sites."""
    if pair(output_size) != (1, 1) or x.channels_last:
        raise unsupported(func.__name__, f"to {output_size} has no rule")
    _plain(x)
    if "max" in func.__name__:
        return x.engine.max_sites(x)
    total = x.engine.sum_sites(x)
    return total / visible_sites(x).to(total.dtype)


@rule("batch_norm")
def batch_norm(
    func: Any,
    x: SiteTensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    **_: Any,
) -> SiteTensor:
    """BatchNorm with statistics over the visible sites of the batch."""
    if x.channels_last:
        raise unsupported("batch_norm", "on a channels-last map has no rule")
    _plain(x)

    def normalize(values: Tensor) -> Tensor:
        return F.batch_norm(
            values, running_mean, running_var, weight, bias, training, momentum, eps
        )

    return x.engine.over_sites(x, normalize)


@rule("layer_norm", "rms_norm")
def layer_norm(func: Any, x: SiteTensor, normalized_shape: Any, *args: Any, **kwargs: Any) -> Any:
    """Normalization over the channels of one site."""
    if not x.channels_last or len(normalized_shape) != 1:
        raise unsupported(func.__name__, f"over {list(normalized_shape)} mixes sites")
    out = x.like(func(_plain(x), normalized_shape, *args, **kwargs))
    return out.engine.zero_masked(out) if out.engine.masks_after else out


@rule("linear")
def linear(func: Any, x: SiteTensor, weight: Tensor, bias: Tensor | None = None) -> SiteTensor:
    """A linear layer over the channels of each site; channels last."""
    if not x.channels_last:
        raise unsupported("linear", "needs channels last")
    out = x.like(F.linear(_plain(x), weight, bias))
    fills = out.engine.masks_after and bias is not None
    return out.engine.zero_masked(out) if fills else out


@rule("group_norm")
def group_norm(
    func: Any,
    x: SiteTensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    **_: Any,
) -> SiteTensor:
    """GroupNorm with statistics per image and group, over the image's visible sites."""
    if x.channels_last or x.dim() != 4:
        raise unsupported("group_norm", "on this layout has no rule")
    wide = torch.promote_types(x.dtype, torch.float32)
    # [B, groups, C / groups, H, W]
    grouped = x.like(_plain(x).to(wide).unflatten(1, (num_groups, -1)))
    each = visible_sites(grouped).to(wide) * grouped.shape[2]
    mean = x.engine.sum_sites(grouped).sum(2, keepdim=True) / each
    centered: Any = grouped - mean
    variance = x.engine.sum_sites(centered * centered).sum(2, keepdim=True) / each
    out: Any = (centered * torch.rsqrt(variance + eps)).flatten(1, 2).to(x.dtype)
    if weight is not None:
        out = out * weight.view(-1, 1, 1)
    return out if bias is None else out + bias.view(-1, 1, 1)


@rule("interpolate")
def interpolate(
    func: Any,
    x: SiteTensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    **_: Any,
) -> SiteTensor:
    """Nearest-neighbor resizing by a whole factor stays within a tile."""
    if size is not None:
        scale_factor = [new / old for new, old in zip(pair(size), x.shape[-2:], strict=True)]
    factor = scale_factor if isinstance(scale_factor, (int, float)) else scale_factor[0]
    same = isinstance(scale_factor, (int, float)) or len(set(scale_factor)) == 1
    whole = float(factor).is_integer()
    if mode not in ("nearest", "nearest-exact") or x.channels_last or not (same and whole):
        raise unsupported("interpolate", f"({mode}, factor {scale_factor}) reads other tiles")
    return x.like(F.interpolate(_plain(x), scale_factor=int(factor), mode="nearest"))


@rule("pixel_shuffle", "pixel_unshuffle")
def pixel_shuffle(func: Any, x: SiteTensor, factor: int) -> SiteTensor:
    """Moves channels to sites or back within a tile."""
    if func.__name__ == "pixel_unshuffle" and x.side % factor:
        raise unsupported("pixel_unshuffle", f"by {factor} splits tiles of {x.side} sites")
    return x.like(func(_plain(x), factor))
