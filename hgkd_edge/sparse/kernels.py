"""Convolution on tiles: gather the window each tile reads, then a native kernel.

A *row* is one site of the channels-last view `[n * t * t, C]` of tiles `[n, C, t, t]`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hgkd_edge.sparse.visible import Visible, Window


class ConvShape(NamedTuple):
    """What a convolution or pooling reads and writes; pairs are (rows, columns)."""

    t: int  # side of an input tile
    kernel: tuple[int, int]
    stride: tuple[int, int]
    before: tuple[int, int]  # padding above and to the left
    dilation: tuple[int, int]
    groups: int

    @property
    def windows(self) -> tuple[Window, Window]:
        """What is read around one tile, along rows and columns."""
        sizes = [
            (self.t // s - 1) * s + d * (k - 1) + 1
            for k, s, d in zip(self.kernel, self.stride, self.dilation, strict=True)
        ]
        return Window(self.before[0], sizes[0]), Window(self.before[1], sizes[1])


def rows_of(tiles: Tensor) -> Tensor:
    """Tiles `[n, C, t, t]` as rows `[n * t * t, C]`; free when they are channels-last."""
    return tiles.permute(0, 2, 3, 1).reshape(-1, tiles.shape[1])


def tiles_of(rows: Tensor, t: int) -> Tensor:
    """Rows `[n * t * t, C]` as channels-last tiles `[n, C, t, t]`, without a copy."""
    return rows.view(-1, t, t, rows.shape[1]).permute(0, 3, 1, 2)


class _GatherWindow(torch.autograd.Function):
    """Rows of every window; what is masked or outside the image gets a constant."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, outside: float) -> Tensor:
        ctx.save_for_backward(index)
        ctx.count = rows.shape[0]
        ends = rows.new_tensor([outside, 0.0])[:, None].expand(2, rows.shape[1])
        return torch.cat([rows, ends]).index_select(0, index % (rows.shape[0] + 2))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        total = grad.new_zeros(ctx.count + 2, grad.shape[1])
        total.index_add_(0, index % (ctx.count + 2), grad)
        return total[: ctx.count], None, None


def gather_window(
    tiles: Tensor, visible: Visible, t: int, rows: Window, cols: Window, outside: float = 0.0
) -> Tensor:
    """The window around each tile.

    Args:
        tiles: `[n, C, t, t]`.
        rows, cols: The window along each axis.
        outside: Value outside the image; masked sites are zero.

    Returns:
        `[n, C, rows.size, cols.size]`, channels-last.
    """
    if rows == cols == Window(0, t):
        return tiles
    index = visible.window_rows(t, rows, cols).flatten()
    near = _GatherWindow.apply(rows_of(tiles), index, outside)
    return near.view(-1, rows.size, cols.size, tiles.shape[1]).permute(0, 3, 1, 2)


def conv2d(
    tiles: Tensor, weight: Tensor, bias: Tensor | None, shape: ConvShape, visible: Visible
) -> Tensor:
    """Convolution of tiles `[n, C, t, t]` -> `[n, O, t / stride, t / stride]`."""
    near = gather_window(tiles, visible, shape.t, *shape.windows)
    return F.conv2d(near, weight, bias, shape.stride, 0, shape.dilation, shape.groups)
