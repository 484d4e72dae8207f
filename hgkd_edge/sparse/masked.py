"""The reference backend: dense layers, masked after every convolution and pooling.

This is what SparK does (Tian et al. 2023, https://arxiv.org/abs/2301.03580). It saves no
computation, but it is simple enough to trust, and as lean as SparK's: an in-place multiplication
after each layer, and BatchNorm on gathered rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hgkd_edge.sparse.gather import padding_of
from hgkd_edge.sparse.shape import ConvShape
from hgkd_edge.sparse.sites import Convolution, Engine, Pair, Pooling, SiteTensor
from hgkd_edge.sparse.strided import safe_layout
from hgkd_edge.sparse.visible import Visible


class MaskedEngine(Engine):
    """One forward pass on dense maps whose masked sites are kept at zero."""

    masks_after = True

    def __init__(self, visible: Visible) -> None:
        self.visible = visible

    def enter(self, images: Tensor) -> SiteTensor:
        return SiteTensor.make(images * self.visible.sites(self.visible.patch), self)

    def leave(self, x: SiteTensor) -> Tensor:
        return x.payload.permute(0, 3, 1, 2) if x.channels_last else x.payload

    def tile_side(self, payload: Tensor, channels_last: bool) -> int:
        return payload.shape[2 if channels_last else -1] // self.visible.w

    def zero_masked(self, x: SiteTensor) -> SiteTensor:
        return x.like(x.payload * self._sites(x))

    def one_at_masked(self, x: SiteTensor) -> SiteTensor:
        return x.like(x.payload.masked_fill(~self._sites(x), 1.0))

    def per_image(self, values: Tensor, x: SiteTensor) -> Tensor:
        return values

    def sum_sites(self, x: SiteTensor) -> Tensor:
        """Sum over each image's visible sites; the others are zero."""
        wide = torch.promote_types(x.payload.dtype, torch.float32)
        return x.payload.sum(x.spatial, keepdim=True, dtype=wide).to(x.payload.dtype)

    def max_sites(self, x: SiteTensor) -> Tensor:
        """Maximum over each image's visible sites; zero for an image without any."""
        top = x.payload.masked_fill(~self._sites(x), float("-inf")).amax(x.spatial, keepdim=True)
        return torch.where(top.isinf(), torch.zeros_like(top), top)

    def over_sites(self, x: SiteTensor, function: Callable[[Tensor], Tensor]) -> SiteTensor:
        """Apply a function to the gathered visible rows `[N, C]`, and write them to a zero map."""
        dense, rows = x.payload.permute(0, 2, 3, 1), self.visible.grid_rows(x.side)
        flat = dense.reshape(-1, dense.shape[3])
        out = function(flat.index_select(0, rows))
        back = torch.zeros_like(flat, dtype=out.dtype).index_copy(0, rows, out)
        return x.like(back.view(dense.shape).permute(0, 3, 1, 2))

    def conv2d(
        self, x: SiteTensor, weight: Tensor, bias: Tensor | None, how: Convolution
    ) -> SiteTensor:
        dense, padding = x.payload, how.before
        if how.before != how.after or min(how.before) < 0:
            dense, padding = _pad(dense, how.before, how.after, 0.0), (0, 0)
        dense = safe_layout(dense, weight, how.stride)
        out = F.conv2d(dense, weight, bias, how.stride, padding, how.dilation, how.groups)
        return self._mask_in_place(x, out)

    def pool2d(self, x: SiteTensor, how: Pooling) -> SiteTensor:
        shape = ConvShape(x.side, how.kernel, how.stride, how.before, how.dilation, 1)
        left, right, top, bottom = padding_of(shape, self.visible)
        before, after = (top, left), (bottom, right)
        dense = _pad(x.payload, before, after, how.outside)
        if how.kind == "max":
            out = F.max_pool2d(dense, how.kernel, how.stride, 0, how.dilation)
            return self._mask_in_place(x, out)
        out = F.avg_pool2d(dense, how.kernel, how.stride)
        if not how.count_padding:
            ones = _pad(torch.ones_like(x.payload[:1, :1]), before, after, 0.0)
            out = out / F.avg_pool2d(ones, how.kernel, how.stride)
        return self._mask_in_place(x, out)

    def _mask_in_place(self, x: SiteTensor, out: Tensor) -> SiteTensor:
        result = x.like(out)
        return x.like(out.mul_(self.visible.sites(result.side)))

    def _sites(self, x: SiteTensor) -> Tensor:
        """The mask, reshaped to the axes of `x`."""
        sites = self.visible.sites(x.side)  # [B, 1, H, W]
        if x.channels_last:
            return sites.permute(0, 2, 3, 1)
        return sites.view(sites.shape[0], *(1,) * (x.dim() - 3), *sites.shape[2:])


def _pad(dense: Tensor, before: Pair, after: Pair, value: float) -> Tensor:
    return F.pad(dense, (before[1], after[1], before[0], after[0]), value=value)
