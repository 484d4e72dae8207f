"""Layers whose Triton kernels read neighbors in place, without gathering them first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hgkd_edge.sparse import launch
from hgkd_edge.sparse.gather import new_tiles, rows_of
from hgkd_edge.sparse.shape import ConvShape
from hgkd_edge.sparse.visible import Visible


def _rows(tiles: Tensor) -> Tensor:
    return rows_of(tiles.detach()).contiguous()


def _out_like(tiles: Tensor, shape: ConvShape) -> Tensor:
    return new_tiles(tiles, len(tiles), *(shape.t // s for s in shape.stride))


class DepthwiseConv(torch.autograd.Function):
    """Depthwise convolution: one kernel forward, one for each gradient."""

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
        out = _out_like(tiles, shape)
        launch.depthwise(_rows(tiles), weight, visible, shape, rows_of(out))
        return out if bias is None else out.add_(bias.view(-1, 1, 1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tiles, weight = ctx.saved_tensors
        rows = _rows(grad)
        d_tiles = d_weight = None
        if ctx.needs_input_grad[0]:
            d_tiles = new_tiles(tiles, *_sizes(tiles))
            launch.depthwise_input(rows, weight, ctx.visible, ctx.shape, rows_of(d_tiles))
        if ctx.needs_input_grad[1]:
            d_weight = launch.depthwise_weight(_rows(tiles), rows, ctx.visible, ctx.shape)
        d_bias = grad.sum((0, 2, 3)) if ctx.biased and ctx.needs_input_grad[2] else None
        return d_tiles, d_weight, d_bias, None, None


class MaxPool(torch.autograd.Function):
    """Max pooling that stores one byte per output value for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, tiles: Tensor, shape: ConvShape, visible: Visible, outside: float
    ) -> Tensor:
        out = _out_like(tiles, shape)
        chosen = torch.empty_like(rows_of(out), dtype=torch.int8)
        launch.max_pool(_rows(tiles), visible, shape, outside, rows_of(out), chosen)
        ctx.save_for_backward(chosen)
        ctx.shape, ctx.visible = shape, visible
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (chosen,) = ctx.saved_tensors
        d_tiles = new_tiles(grad, len(grad), ctx.shape.t, ctx.shape.t)
        launch.max_pool_backward(_rows(grad), chosen, ctx.visible, ctx.shape, rows_of(d_tiles))
        return d_tiles, None, None, None


def _sizes(tiles: Tensor) -> tuple[int, int, int]:
    return tiles.shape[0], tiles.shape[2], tiles.shape[3]
