"""BatchNorm with the statistics of the global batch, on any device and any backend.

torch's SyncBatchNorm runs on GPUs only and is a different module class, so a model that uses it is
no longer timm's. This module keeps the model's modules unchanged. While the model runs, it replaces
the function that they all call, `F.batch_norm`. That also works on the visible sites of a sparse
encoder.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules._functions import SyncBatchNorm as FusedSyncBatchNorm
from torch.overrides import TorchFunctionMode

__all__ = ["SyncedBatchNorm"]


class SyncedBatchNorm(TorchFunctionMode):
    """Inside this context, BatchNorm in training uses the batches of all processes.

    Every process must run the same layers in the same order.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        if type(args[0]) is not Tensor:
            # A tensor stand-in: synchronize what it does with its payload.
            with self:
                return type(args[0]).__torch_function__(func, types, args, kwargs)
        return _batch_norm(*args, **kwargs)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Like `F.batch_norm`, x f[B, C, ...]."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    if x.is_cuda:
        return FusedSyncBatchNorm.apply(
            x, weight, bias, running_mean, running_var, eps, momentum,
            dist.group.WORLD, dist.get_world_size(),
        )  # fmt: skip
    axes = [axis for axis in range(x.dim()) if axis != 1]
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    values = x.float()
    count = _total(torch.tensor([x.numel() / x.shape[1]]))
    mean = _total(values.sum(axes)) / count  # [C]
    centered = values - mean.view(per_channel)
    variance = _total(centered.square().sum(axes)) / count  # [C]
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * count / (count - 1), momentum)
    scale = (variance + eps).rsqrt() * (1.0 if weight is None else weight)
    out = centered * scale.view(per_channel)
    return (out if bias is None else out + bias.view(per_channel)).to(x.dtype)


class _Total(torch.autograd.Function):
    """The sum over processes; its gradient is that of the sum of all processes' losses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


def _total(x: Tensor) -> Tensor:
    return _Total.apply(x)
