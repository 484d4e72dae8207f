"""Gathers the inputs of a layer: windows around tiles, neighbors of sites.

In plain torch every gather is an `index_select` over rows, the fastest on a CPU. A row of zeros is
appended to the map for sites that are masked or outside the image. On a GPU, the table in `choice`
selects the Triton kernels of `launch`, which compute the row indices themselves.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hgkd_edge.sparse import launch
from hgkd_edge.sparse.choice import gathers_by
from hgkd_edge.sparse.shape import ConvShape
from hgkd_edge.sparse.visible import Visible, Window, indices


def rows_of(tiles: Tensor) -> Tensor:
    """Tiles `[n, C, t, t]` as rows `[n * t * t, C]`; free when they are channels-last."""
    return tiles.permute(0, 2, 3, 1).reshape(-1, tiles.shape[1])


def tiles_of(rows: Tensor, t: int) -> Tensor:
    """Rows `[n * t * t, C]` as channels-last tiles `[n, C, t, t]`, without a copy."""
    return rows.view(-1, t, t, rows.shape[1]).permute(0, 3, 1, 2)


def new_tiles(like: Tensor, count: int, height: int, width: int) -> Tensor:
    """Uninitialized channels-last `[count, C, height, width]`.

    Results are written into these instead of viewed as such: autograd refuses in-place layers after
    a custom function whose output is a view.
    """
    size = (count, like.shape[1], height, width)
    return torch.empty(
        size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def gather_rows(
    rows: Tensor,
    index: Tensor,
    visible: Visible,
    *,
    outside: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:
    """Several rows side by side, without a gradient.

    Args:
        rows: `[N, C]`.
        index: int64 `[M, K]`, N for a row of zeros, N + 1 for a row of `outside`.
        out: Output `[M * K, C]`; without it the result is scratch memory, to be read immediately.

    Returns:
        `[M, K * C]`.
    """
    rows, (count, channels) = rows.detach(), rows.shape
    padded = visible.scratch("padded", (count + 2, channels), rows)
    padded[:count].copy_(rows)
    padded[count].zero_()
    padded[count + 1].fill_(outside)
    if out is None:
        out = visible.scratch("gathered", (index.numel(), channels), rows)
    torch.index_select(padded, 0, index.flatten(), out=out)
    return out.view(index.shape[0], -1)


def fold_rows(products: Tensor, index: Tensor, visible: Visible) -> Tensor:
    """Sum of several rows for each row of the result, without a gradient.

    Args:
        products: `[M, C]`.
        index: int64 `[N, K]`, M for a row of zeros.

    Returns:
        `[N, C]`.
    """
    total = products.new_zeros(index.shape[0], products.shape[1])
    for column in index.t():
        present = (column < products.shape[0]).to(products.dtype)[:, None]
        buffer = visible.scratch("gathered", (column.numel(), products.shape[1]), products)
        torch.index_select(products, 0, column.clamp_max(products.shape[0] - 1), out=buffer)
        total.addcmul_(buffer, present)
    return total


def gather_neighbors(
    rows: Tensor, visible: Visible, shape: ConvShape, *, flip: bool = False
) -> Tensor:
    """The k * k neighbors of every output site, without a gradient, in scratch memory.

    Args:
        rows: `[N, C]`.
        flip: The last tap first.

    Returns:
        `[n * t_out * t_out, k * k * C]`.
    """
    if gathers_by(rows) == "triton":
        taps = shape.kernel[0] * shape.kernel[1]
        sites = visible.n * shape.t**2 // (shape.stride[0] * shape.stride[1])
        out = visible.scratch("gathered", (sites * taps, rows.shape[1]), rows)
        launch.neighbors(rows.detach().contiguous(), visible, shape, flip=flip, out=out)
        return out.view(sites, -1)
    index = neighbor_index(visible, shape)
    return gather_rows(rows, index.flip(1) if flip else index, visible)


def fold_neighbors(products: Tensor, visible: Visible, shape: ConvShape) -> Tensor:
    """The backward of `gather_neighbors`: products `[output rows * k * k, C]` to `[N, C]`."""
    if gathers_by(products) == "triton":
        out = products.new_empty(visible.n * shape.t**2, products.shape[1])
        launch.fold_taps(products.contiguous(), visible, shape, out)
        return out
    return fold_rows(products, fold_index(visible, shape), visible)


def neighbor_index(visible: Visible, shape: ConvShape) -> Tensor:
    """Rows that each output site reads: int64 `[n * t_out * t_out, k * k]`, N for none."""
    key = ("neighbors of sites", shape._replace(groups=1))
    index = visible.cached(key)
    if index is None:
        window = visible.window_rows(shape.t, *shape.windows)  # [n, rows, cols]
        window = torch.where(window < 0, visible.n * shape.t**2, window)
        index = _slide(window, shape).flatten(3).flatten(0, 2)
        visible.keep(key, index)
    return index


def _slide(window: Tensor, shape: ConvShape) -> Tensor:
    """`[n, rows, cols]` -> `[n, t_out, t_out, k, k]`: the kernel's inputs at each output site."""
    for axis in (0, 1):
        reach = shape.dilation[axis] * (shape.kernel[axis] - 1) + 1
        window = window.unfold(1 + axis, reach, shape.stride[axis])[..., :: shape.dilation[axis]]
    return window


def fold_index(visible: Visible, shape: ConvShape) -> Tensor:
    """For each input site, the (output row, tap) pairs that read it.

    Returns:
        int64 `[n * t * t, taps]` into the rows of `[out rows * k * k, C]`; an index equal to the
        number of rows means none.
    """
    key = ("fold", shape._replace(groups=1))
    index = visible.cached(key)
    if index is None:
        index = visible.keep(key, _make_fold_index(visible, shape))
    return index


def _make_fold_index(visible: Visible, shape: ConvShape) -> Tensor:
    neighbors = neighbor_index(visible, shape)  # [out rows, k * k], values are input rows
    ky, kx = shape.kernel
    strides = [s // math.gcd(s, d) for s, d in zip(shape.stride, shape.dilation, strict=True)]
    per_site = -(-ky // strides[0]) * -(-kx // strides[1])  # max. taps that read one site
    count = visible.n * shape.t**2
    # Sorting the pairs by the row they read makes the readers of one row adjacent; the position
    # within its run is the column. A sort, not a scatter, so that the result is deterministic.
    row, order = neighbors.flatten().sort(stable=True)
    first = torch.searchsorted(row, torch.arange(count + 1, device=row.device))
    place = torch.arange(row.numel(), device=row.device) - first[row]
    index = row.new_full((count + 1, per_site), neighbors.numel())
    inside = row < count
    place = torch.where(inside, place, 0)  # all readers of the zero row go to one spare row
    index[row, place] = order
    return index[:count]


def gather_window(
    tiles: Tensor,
    visible: Visible,
    t: int,
    rows: Window,
    cols: Window,
    *,
    outside: float = 0.0,
    keep: bool = False,
) -> Tensor:
    """The window around each tile, without a gradient; zero at masked sites.

    Args:
        tiles: `[n, C, t, t]`.
        rows, cols: The window along each axis.
        outside: Value outside the image.
        keep: Whether the result must outlive the next gather.

    Returns:
        `[n, C, rows.size, cols.size]`, channels-last.
    """
    if rows == cols == Window(0, t):
        return tiles
    if gathers_by(tiles) == "triton":
        sites = visible.n * rows.size * cols.size
        if keep:
            near = new_tiles(tiles, visible.n, rows.size, cols.size)
            out = rows_of(near)
        else:
            out = visible.scratch("gathered", (sites, tiles.shape[1]), tiles)
            near = out.view(-1, rows.size, cols.size, tiles.shape[1]).permute(0, 3, 1, 2)
        source = rows_of(tiles.detach()).contiguous()
        launch.window(source, visible, t, (rows, cols), outside, out)
        return near
    index = _window_index(visible, t, rows, cols).view(-1, 1)
    if keep:
        near = new_tiles(tiles, visible.n, rows.size, cols.size)
        gather_rows(rows_of(tiles), index, visible, outside=outside, out=rows_of(near))
        return near
    flat = gather_rows(rows_of(tiles), index, visible, outside=outside)
    return flat.view(-1, rows.size, cols.size, tiles.shape[1]).permute(0, 3, 1, 2)


def _window_index(visible: Visible, t: int, rows: Window, cols: Window) -> Tensor:
    """`Visible.window_rows` with indices past the map: N masked, N + 1 outside the image."""
    key = ("window index", t, rows, cols)
    index = visible.cached(key)
    if index is None:
        index = visible.window_rows(t, rows, cols)
        index = visible.keep(key, torch.where(index < 0, visible.n * t * t - 1 - index, index))
    return index


class _Near(torch.autograd.Function):
    """`gather_window` with a gradient, and with a chosen value outside the image."""

    @staticmethod
    def forward(
        ctx: Any, tiles: Tensor, visible: Visible, rows: Window, cols: Window, outside: float
    ) -> Tensor:
        ctx.visible, ctx.t, ctx.windows = visible, tiles.shape[-1], (rows, cols)
        return gather_window(tiles, visible, ctx.t, rows, cols, outside=outside, keep=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return fold_window(grad, ctx.visible, ctx.t, *ctx.windows), None, None, None, None


def near_tiles(
    tiles: Tensor, visible: Visible, rows: Window, cols: Window, outside: float = 0.0
) -> Tensor:
    """The window around each tile, differentiable: `[n, C, rows.size, cols.size]`."""
    if rows == cols == Window(0, tiles.shape[-1]):
        return tiles
    return _Near.apply(tiles, visible, rows, cols, outside)


def fold_window(near: Tensor, visible: Visible, t: int, rows: Window, cols: Window) -> Tensor:
    """The backward of `gather_window`: the sum of every site's copies, `[n, C, t, t]`.

    If the window covers the tile, the tile's own sites are a slice and only the border is
    scattered.
    """
    if rows == cols == Window(0, t):
        return near
    if gathers_by(near) == "triton":
        whole = new_tiles(near, visible.n, t, t)
        launch.fold_window(rows_of(near).contiguous(), visible, t, (rows, cols), rows_of(whole))
        return whole
    index = _window_index(visible, t, rows, cols)
    count, channels = visible.n * t * t, near.shape[1]
    total = near.new_zeros(count + 2, channels)
    near = near.permute(0, 2, 3, 1)  # [n, rows, cols, C]
    if all(0 <= w.before <= w.size - t for w in (rows, cols)):
        own = near[:, rows.before : rows.before + t, cols.before : cols.before + t]
        total[:count].view(own.shape).copy_(own)
        edge = _border(visible, t, rows, cols)
        index = index.flatten(1).index_select(1, edge)
        near = near.flatten(1, 2).index_select(1, edge)
    total.index_add_(0, index.flatten(), near.reshape(-1, channels))
    return tiles_of(total[:count], t)


def _border(visible: Visible, t: int, rows: Window, cols: Window) -> Tensor:
    """Positions in a window, counted row by row, that lie outside its tile."""
    key = ("border", t, rows, cols)
    border = visible.cached(key)
    if border is not None:
        return border
    y, x = (torch.arange(w.size, device=visible.device) - w.before for w in (rows, cols))
    own = ((y >= 0) & (y < t))[:, None] & ((x >= 0) & (x < t))  # [rows.size, cols.size]
    return visible.keep(key, indices(~own.view(1, -1), own.numel() - t * t)[0])


def padding_of(shape: ConvShape, visible: Visible) -> tuple[int, int, int, int]:
    """The layer's padding on the dense grid: (left, right, top, bottom); negative crops."""
    sides = []
    for axis, patches in ((1, visible.w), (0, visible.h)):
        s, d, k = shape.stride[axis], shape.dilation[axis], shape.kernel[axis]
        read = (patches * shape.t // s - 1) * s + d * (k - 1) + 1
        sides += [shape.before[axis], read - patches * shape.t - shape.before[axis]]
    return sides[0], sides[1], sides[2], sides[3]


def to_grid(
    tiles: Tensor,
    visible: Visible,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    *,
    keep: bool = True,
) -> Tensor:
    """Tiles on the dense grid, zero elsewhere: `[B, C, H, W]` with padding, channels-last.

    Args:
        padding: (left, right, top, bottom), in sites.
        keep: Whether the result must outlive the next gather.
    """
    t = tiles.shape[-1]
    if gathers_by(tiles) == "triton":
        left, right, top, bottom = padding
        size = (visible.h * t + top + bottom, visible.w * t + left + right)
        dense = new_tiles(tiles, visible.batch, *size)
        source = rows_of(tiles.detach()).contiguous()
        launch.to_grid(source, visible, t, padding, rows_of(dense))
        return dense
    key = ("padded grid", t, padding)
    index = visible.cached(key)
    if index is None:
        count = visible.n * t * t
        index = visible.tiles.new_full((visible.batch * visible.h * t * visible.w * t,), count)
        index[visible.grid_rows(t)] = torch.arange(count, device=index.device)
        index = index.view(visible.batch, visible.h * t, visible.w * t)
        index = visible.keep(key, torch.nn.functional.pad(index, padding, value=count))
    if keep:
        dense = new_tiles(tiles, *index.shape)
        gather_rows(rows_of(tiles), index.view(-1, 1), visible, out=rows_of(dense))
        return dense
    flat = gather_rows(rows_of(tiles), index.view(-1, 1), visible)
    return flat.view(*index.shape, -1).permute(0, 3, 1, 2)


def from_grid(dense: Tensor, visible: Visible, t: int) -> Tensor:
    """The visible tiles of a dense map `[B, C, H, W]`: `[n, C, t, t]`, channels-last."""
    tiles = new_tiles(dense, visible.n, t, t)
    if gathers_by(dense) == "triton":
        launch.from_grid(rows_of(dense).contiguous(), visible, t, rows_of(tiles))
        return tiles
    torch.index_select(rows_of(dense), 0, visible.grid_rows(t), out=rows_of(tiles))
    return tiles


class _PutBack(torch.autograd.Function):
    """Tiles on the dense grid, zero elsewhere."""

    @staticmethod
    def forward(ctx: Any, tiles: Tensor, visible: Visible) -> Tensor:
        ctx.visible, ctx.t = visible, tiles.shape[-1]
        return to_grid(tiles, visible)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        v, t = ctx.visible, ctx.t
        if grad.is_contiguous(memory_format=torch.channels_last):
            return from_grid(grad, v, t), None
        # Channels first: cut out the visible tiles before transposing, which copies less than half.
        cut = grad.unflatten(3, (v.w, t)).unflatten(2, (v.h, t))  # [B, C, h, t, w, t]
        cut = cut.permute(0, 2, 4, 1, 3, 5)[v.image, v.row, v.col]  # [n, C, t, t]
        return cut.contiguous(memory_format=torch.channels_last), None


def put_back(tiles: Tensor, visible: Visible) -> Tensor:
    """Tiles `[n, C, t, t]` on the dense grid: `[B, C, H, W]`, channels-last, zero elsewhere."""
    return _PutBack.apply(tiles, visible)
