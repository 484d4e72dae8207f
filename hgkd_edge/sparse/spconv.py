"""The spconv backend: the same rows, convolved by spconv's SubMConv2d and SparseConv2d.

For CUDA users who want spconv's kernels. spconv supports only ungrouped convolutions. Everything
else runs as in the tiles backend, whose rows are spconv's features in another order. spconv's CPU
build computes only the forward pass.

Weights stay timm's `[O, C, k, k]` (OIHW) parameters. spconv reads them as `[O, k, k, C]` (KRSC)
through a permutation, which autograd reverses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hgkd_edge.errors import MissingPackageError
from hgkd_edge.sparse.gather import rows_of, tiles_of
from hgkd_edge.sparse.sites import Convolution, SiteTensor, unsupported
from hgkd_edge.sparse.tiles import TileEngine
from hgkd_edge.sparse.visible import Visible


def krsc(weight: Tensor) -> Tensor:
    """OIHW `[O, C, k, k]` -> KRSC `[O, k, k, C]`."""
    return weight.permute(0, 2, 3, 1).contiguous()


@contextlib.contextmanager
def _one_cpu_thread(device: torch.device) -> Iterator[None]:
    """With several threads, spconv's CPU build (2.3.8) drops sums, differently in each run."""
    if device.type != "cpu":
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class SpconvEngine(TileEngine):
    """One forward pass whose k x k convolutions are spconv's."""

    def __init__(self, visible: Visible) -> None:
        super().__init__(visible)
        try:
            import spconv.pytorch as spconv
        except ImportError as error:
            raise MissingPackageError(
                "backend='spconv'", extra="spconv", package="spconv"
            ) from error
        self._spconv = spconv

    def conv2d(
        self, x: SiteTensor, weight: Tensor, bias: Tensor | None, how: Convolution
    ) -> SiteTensor:
        kernel = (weight.shape[2], weight.shape[3])
        if kernel == (1, 1):
            return super().conv2d(x, weight, bias, how)
        stride, before, dilation = how.stride, how.before, how.dilation
        if how.groups != 1:
            raise unsupported("conv2d", f"with groups={how.groups} does not exist in spconv")
        reach = tuple(d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
        if stride == (1, 1) and (before != how.after or tuple(2 * b for b in before) != reach):
            raise unsupported("conv2d", f"with padding {before}, {how.after} is not in spconv")
        o, c = weight.shape[:2]
        settings: dict[str, Any] = {
            "kernel_size": kernel, "dilation": dilation, "bias": bias is not None,
        }  # fmt: skip
        with torch.device("meta"):  # a module without weights; they are set for this call
            if stride == (1, 1):
                key = f"{x.side} {kernel} {dilation}"
                layer = self._spconv.SubMConv2d(c, o, indice_key=key, **settings)
            else:
                layer = self._spconv.SparseConv2d(c, o, stride=stride, padding=before, **settings)
        parameters = {"weight": krsc(weight)} | ({} if bias is None else {"bias": bias})
        with _one_cpu_thread(x.payload.device):
            out = torch.func.functional_call(layer, parameters, (self._to_spconv(x),))
        t = x.side // stride[0]
        features = out.features if stride == (1, 1) else self._visible_only(out, t)
        return x.like(tiles_of(features.to(x.payload.dtype), t))

    def _to_spconv(self, x: SiteTensor) -> Any:
        """Rows with their (image, row, column), which spconv wants as contiguous int32."""
        v, t = self.visible, x.side
        height, width = v.h * t, v.w * t
        flat = v.grid_rows(t)
        indices = torch.stack([flat // (height * width), flat // width % height, flat % width], 1)
        return self._spconv.SparseConvTensor(
            rows_of(x.payload).contiguous(), indices.int().contiguous(), [height, width], v.batch
        )

    def _visible_only(self, out: Any, t: int) -> Tensor:
        """Strided outputs also cover sites outside visible patches: keep only the visible ones."""
        v = self.visible
        image, row, col = out.indices.long().unbind(1)
        place = v.tiles.new_zeros(v.batch * v.h * t * v.w * t)
        inside = (row < v.h * t) & (col < v.w * t)
        flat = (image * (v.h * t) + row) * (v.w * t) + col
        place[flat[inside]] = torch.arange(len(flat), device=flat.device)[inside]
        return out.features.index_select(0, place[v.grid_rows(t)])
