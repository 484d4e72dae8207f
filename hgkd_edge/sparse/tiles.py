"""The fast backend: visible patches as a batch of tiles `[n, C, t, t]`.

Work within a site (1x1 convolutions, activations, normalization, residual sums) runs unchanged on
the tiles. Convolution and pooling read a window around each tile, gathered by row (`convolution`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hgkd_edge.sparse import convolution
from hgkd_edge.sparse.choice import pools_by
from hgkd_edge.sparse.direct import MaxPool
from hgkd_edge.sparse.gather import near_tiles, put_back, rows_of, tiles_of
from hgkd_edge.sparse.shape import ConvShape
from hgkd_edge.sparse.sites import Convolution, Engine, Pooling, SiteTensor
from hgkd_edge.sparse.visible import Visible, Window


class TileEngine(Engine):
    """One forward pass on tiles."""

    masks_after = False

    def __init__(self, visible: Visible) -> None:
        self.visible = visible

    def enter(self, images: Tensor) -> SiteTensor:
        """Cut the visible patches out of images `[B, C, H, W]`."""
        v, p = self.visible, self.visible.patch
        patches = images.unflatten(3, (v.w, p)).unflatten(2, (v.h, p))  # [B, C, h, p, w, p]
        patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(v.batch * v.h * v.w, p, p, -1)
        return SiteTensor.make(patches.index_select(0, v.tiles).permute(0, 3, 1, 2), self)

    def leave(self, x: SiteTensor) -> Tensor:
        """Place the tiles on the grid: `[B, C, H, W]`, zero at masked sites."""
        tiles = x.payload.permute(0, 3, 1, 2) if x.channels_last else x.payload
        return put_back(tiles, self.visible)

    def tile_side(self, payload: Tensor, channels_last: bool) -> int:
        return payload.shape[1 if channels_last else -1]

    def zero_masked(self, x: SiteTensor) -> SiteTensor:
        return x  # tiles contain no masked sites

    def one_at_masked(self, x: SiteTensor) -> SiteTensor:
        return x

    def per_image(self, values: Tensor, x: SiteTensor) -> Tensor:
        """One value per image `[B, ...]` -> one per tile `[n, ...]`."""
        return values.index_select(0, self.visible.image)

    def sum_sites(self, x: SiteTensor) -> Tensor:
        """Sum over each image's visible sites, in float32 at least: `[B, C, 1, 1]`."""
        tiles = x.payload
        wide = torch.promote_types(tiles.dtype, torch.float32)
        each = tiles.sum(x.spatial, keepdim=True, dtype=wide)
        total = each.new_zeros(self.visible.batch, *each.shape[1:])
        return total.index_add(0, self.visible.image, each).to(tiles.dtype)

    def max_sites(self, x: SiteTensor) -> Tensor:
        """Maximum over each image's visible sites; zero for an image without any."""
        each = x.payload.amax(x.spatial, keepdim=True)
        image = self.visible.image.view(-1, *(1,) * (each.dim() - 1)).expand_as(each)
        top = each.new_zeros(self.visible.batch, *each.shape[1:])
        return top.scatter_reduce(0, image, each, "amax", include_self=False)

    def over_sites(self, x: SiteTensor, function: Callable[[Tensor], Tensor]) -> SiteTensor:
        """Apply a function of all visible sites together, such as BatchNorm."""
        if x.side > 1:
            return x.like(function(x.payload))
        # At t = 1 both memory layouts look the same and torch picks the slow one; rows avoid this.
        return x.like(tiles_of(function(rows_of(x.payload)), 1))

    def conv2d(
        self, x: SiteTensor, weight: Tensor, bias: Tensor | None, how: Convolution
    ) -> SiteTensor:
        kernel = (weight.shape[2], weight.shape[3])
        shape = ConvShape(x.side, kernel, how.stride, how.before, how.dilation, how.groups)
        return x.like(convolution.conv2d(x.payload, weight, bias, shape, self.visible))

    def pool2d(self, x: SiteTensor, how: Pooling) -> SiteTensor:
        shape = ConvShape(x.side, how.kernel, how.stride, how.before, how.dilation, 1)
        if how.kind == "max" and pools_by(x.payload, shape) == "direct":
            return x.like(MaxPool.apply(x.payload, shape, self.visible, how.outside))
        rows, cols = shape.windows
        near = near_tiles(x.payload, self.visible, rows, cols, how.outside)
        if how.kind == "max":
            return x.like(F.max_pool2d(near, how.kernel, how.stride, 0, how.dilation))
        out = F.avg_pool2d(near, how.kernel, how.stride)
        if not how.count_padding:
            out = out / self._share_inside(x.side, rows, cols, how).to(out.dtype)
        return x.like(out)

    def _share_inside(self, t: int, rows: Window, cols: Window, how: Pooling) -> Tensor:
        """Share of each pooling window that lies inside the image: `[n, 1, t, t]`."""
        inside = self.visible.window_rows(t, rows, cols) != -2
        return F.avg_pool2d(inside.float().unsqueeze(1), how.kernel, how.stride)
