"""Convolution on tiles: which kernel runs, and how its inputs are gathered.

A *row* is one site of the channels-last view `[n * t * t, C]` of tiles `[n, C, t, t]`. There are
four ways to run a k x k convolution:

    rows     gather the k * k neighbors of every site into `[rows, k * k * C]`, one matrix product
    native   gather the window around every tile, then the library's own convolution
    grid     put the tiles on the dense grid for this layer only (small depthwise or grouped layers)
    direct   depthwise only, in Triton: read the neighbors in place

For the backward pass, all of them keep only the tiles, which the adjacent layers keep anyway;
windows and neighbors are gathered again. For stride 1, the input's gradient is a gather like the
forward pass (the same convolution with the kernel rotated by 180 degrees), never a scatter.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hgkd_edge.sparse import launch, matmul
from hgkd_edge.sparse.choice import choose, kind_of
from hgkd_edge.sparse.direct import DepthwiseConv
from hgkd_edge.sparse.gather import (
    ConvShape,
    fold_neighbors,
    fold_window,
    from_grid,
    gather_neighbors,
    gather_window,
    padding_of,
    rows_of,
    tiles_of,
    to_grid,
)
from hgkd_edge.sparse.visible import Visible

_convolution_backward = torch.ops.aten.convolution_backward


def conv2d(
    tiles: Tensor, weight: Tensor, bias: Tensor | None, shape: ConvShape, visible: Visible
) -> Tensor:
    """Convolution of tiles.

    Args:
        tiles: `[n, C, t, t]`.
        weight: `[O, C / groups, k, k]`.
        bias: `[O]` or None.

    Returns:
        `[n, O, t / stride, t / stride]`, channels-last.
    """
    tiles, weight, bias = _autocast(tiles, weight, bias)
    if shape.pointwise and shape.groups == 1:
        tiles = tiles[:, :, :: shape.stride[0], :: shape.stride[1]]
        out = matmul.linear(rows_of(tiles), weight.flatten(1))
        out = out if bias is None else out + bias
        return tiles_of(out, shape.t // shape.stride[0])
    method = choose(tiles.device.type, tiles.dtype, shape, weight)
    if method == "rows":
        rows = _RowsConv.apply(rows_of(tiles), weight, shape, visible)
        return tiles_of(rows if bias is None else rows + bias, shape.t // shape.stride[0])
    if method == "direct" and launch.ready(tiles) and kind_of(shape.groups, weight) == "depthwise":
        return DepthwiseConv.apply(tiles, weight, bias, shape, visible)
    convolution = _GridConv if method == "grid" else _NativeConv
    return convolution.apply(tiles, weight, bias, shape, visible)


def _autocast(
    tiles: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Apply autocast, which custom functions do not get automatically."""
    if not torch.is_autocast_enabled(tiles.device.type) or tiles.dtype == torch.float64:
        return tiles, weight, bias
    dtype = torch.get_autocast_dtype(tiles.device.type)
    return tiles.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


class _RowsConv(torch.autograd.Function):
    """Convolution as one matrix product over gathered neighbors; groups = 1."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, shape: ConvShape, visible: Visible
    ) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.shape, ctx.visible = shape, visible
        near = gather_neighbors(rows, visible, shape)  # [out rows, k * k * C]
        return matmul.product(near, _flat(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        shape, visible = ctx.shape, ctx.visible
        grad = grad.contiguous()
        d_rows = d_weight = None
        if ctx.needs_input_grad[1]:
            near = gather_neighbors(rows, visible, shape)
            d_flat = matmul.weight_gradient(grad, near)  # [O, k * k * C]
            o, c, ky, kx = weight.shape
            d_weight = d_flat.view(o, ky, kx, c).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[0]:
            d_rows = _rows_input_gradient(grad, weight, shape, visible)
        return d_rows, d_weight, None, None


def _flat(weight: Tensor) -> Tensor:
    """`[O, C, k, k]` as `[O, k * k * C]`, the order in which neighbors are gathered."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _rows_input_gradient(
    grad: Tensor, weight: Tensor, shape: ConvShape, visible: Visible
) -> Tensor:
    if shape.stride == (1, 1):
        near = gather_neighbors(grad, visible, shape.turned, flip=True)
        return matmul.product(near, weight.permute(1, 2, 3, 0).flatten(1))
    # Few of the k * k taps read each input site: gather and sum those products.
    c = weight.shape[1]
    taps = matmul.product(grad, _flat(weight).t().contiguous())  # [out rows, k * k * C]
    return fold_neighbors(taps.view(-1, c), visible, shape)


class _NativeConv(torch.autograd.Function):
    """The library's convolution on the gathered window of every tile."""

    @staticmethod
    def forward(
        ctx: Any,
        tiles: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        shape: ConvShape,
        visible: Visible,
    ) -> Tensor:
        ctx.save_for_backward(tiles, weight)
        ctx.shape, ctx.visible, ctx.biased = shape, visible, bias is not None
        near = gather_window(tiles, visible, shape.t, *shape.windows)
        return F.conv2d(near, weight, bias, shape.stride, 0, shape.dilation, shape.groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tiles, weight = ctx.saved_tensors
        shape, visible = ctx.shape, ctx.visible
        need_tiles, need_weight = ctx.needs_input_grad[:2]
        by_gather = need_tiles and shape.stride == (1, 1)
        d_tiles = d_weight = None
        if by_gather:
            near = gather_window(grad, visible, shape.t, *shape.turned.windows)
            turned = _turn(weight, shape.groups)
            d_tiles = F.conv2d(near, turned, None, 1, 0, shape.dilation, shape.groups)
        if need_weight or (need_tiles and not by_gather):
            near = gather_window(tiles, visible, shape.t, *shape.windows)
            d_near, d_weight, _ = _convolution_backward(
                grad, near, weight, None, shape.stride, (0, 0), shape.dilation, False, (0, 0),
                shape.groups, (need_tiles and not by_gather, need_weight, False),
            )  # fmt: skip
            if d_near is not None:
                d_tiles = fold_window(d_near, visible, shape.t, *shape.windows)
        d_bias = grad.sum((0, 2, 3)) if ctx.biased and ctx.needs_input_grad[2] else None
        return d_tiles, d_weight, d_bias, None, None


class _GridConv(torch.autograd.Function):
    """The library's convolution on the dense grid, for this layer only."""

    @staticmethod
    def forward(
        ctx: Any,
        tiles: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        shape: ConvShape,
        visible: Visible,
    ) -> Tensor:
        ctx.save_for_backward(tiles, weight)
        ctx.shape, ctx.visible, ctx.biased = shape, visible, bias is not None
        dense = to_grid(tiles, visible, padding_of(shape, visible), keep=False)
        out = F.conv2d(dense, weight, bias, shape.stride, 0, shape.dilation, shape.groups)
        return from_grid(out, visible, shape.t // shape.stride[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tiles, weight = ctx.saved_tensors
        shape, visible = ctx.shape, ctx.visible
        pads = padding_of(shape, visible)
        d_dense, d_weight, _ = _convolution_backward(
            to_grid(grad, visible), to_grid(tiles, visible, pads, keep=False), weight, None,
            shape.stride, (0, 0), shape.dilation, False, (0, 0), shape.groups,
            (*ctx.needs_input_grad[:2], False),
        )  # fmt: skip
        d_tiles = None
        if d_dense is not None:
            inner = F.pad(d_dense, tuple(-p for p in pads))  # the inverse: crop, or pad
            d_tiles = from_grid(inner, visible, shape.t)
        d_bias = grad.sum((0, 2, 3)) if ctx.biased and ctx.needs_input_grad[2] else None
        return d_tiles, d_weight, d_bias, None, None


def _turn(weight: Tensor, groups: int) -> Tensor:
    """The kernel of the input's gradient: `[C, O / groups, k, k]`, rotated by 180 degrees."""
    o, c = weight.shape[:2]
    grouped = weight.unflatten(0, (groups, o // groups)).transpose(1, 2)
    return grouped.reshape(groups * c, o // groups, *weight.shape[2:]).flip(2, 3)
