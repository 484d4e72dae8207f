"""Matrix products over rows, with the fastest library call for the dtype and device.

On a CPU in float32, torch's matrix product uses MKL. On AMD processors it reaches half the speed of
oneDNN's 1 x 1 convolution of the same size (see docs/sparse.md), so the rows are passed as one tall
image. In bfloat16 both use oneDNN; on a GPU the plain product is the fastest.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Below this many rows, a weight gradient mostly writes the weight, and the plain product is faster.
FEW_ROWS = 256
_convolution_backward = torch.ops.aten.convolution_backward


def _as_convolution(rows: Tensor) -> bool:
    return rows.device.type == "cpu" and rows.dtype == torch.float32


def _image(rows: Tensor) -> Tensor:
    """`[N, C]` as a channels-last image `[1, C, N, 1]`."""
    return rows.view(1, rows.shape[0], 1, rows.shape[1]).permute(0, 3, 1, 2)


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """`rows @ weight.T`: `[N, K]`, `[O, K]` -> `[N, O]`."""
    if _as_convolution(rows):
        out = F.conv2d(_image(rows), weight[:, :, None, None])
        # Not `view`: autograd refuses in-place layers after a custom function that returns a view.
        out = out.permute(0, 2, 3, 1).contiguous()
        return torch.ops.aten._unsafe_view(out, (rows.shape[0], weight.shape[0]))
    return F.linear(rows, weight)


def weight_gradient(grad: Tensor, rows: Tensor) -> Tensor:
    """`grad.T @ rows`: `[N, O]`, `[N, K]` -> `[O, K]`."""
    if not _as_convolution(rows) or rows.shape[0] <= FEW_ROWS:
        return grad.t() @ rows
    weight = rows.new_empty(grad.shape[1], rows.shape[1], 1, 1)  # only its shape is read
    out = _convolution_backward(
        _image(grad), _image(rows), weight, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1,
        (False, True, False),
    )[1]  # fmt: skip
    return out.flatten(1)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return product(rows, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        grad = grad.contiguous()
        d_rows = product(grad, weight.t().contiguous()) if ctx.needs_input_grad[0] else None
        d_weight = weight_gradient(grad, rows) if ctx.needs_input_grad[1] else None
        return d_rows, d_weight


def linear(rows: Tensor, weight: Tensor) -> Tensor:
    """`rows @ weight.T`, differentiable."""
    return _Linear.apply(rows, weight) if _as_convolution(rows) else F.linear(rows, weight)
