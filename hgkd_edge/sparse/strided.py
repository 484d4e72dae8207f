"""Works around a memory error in oneDNN: strided 1x1 convolutions of few channels on a CPU.

oneDNN's `backward_weights` writes past its scratchpad and corrupts the heap
(https://github.com/uxlfoundation/oneDNN/issues/6035, present in torch 2.14.1). The error occurs if
all of these hold (found with a guard page behind every allocation):

- float32 or bfloat16 (autocast included) on an x86 CPU; float64 takes another kernel
- kernel 1x1 without padding, one group, stride above 1 along either axis
- channels-last input
- fewer than 16 input channels with AVX-512, fewer than 8 with AVX2 (float32 only); any number of
  output channels
- an image large enough to be computed in blocks: from 56 px a side at stride 2, any batch size.
  The size depends on the processor, so the guard ignores it

The same convolution of a channels-first input is computed by another kernel, which is correct.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hgkd_edge.sparse.sites import SiteTensor

__all__ = ["guard_strided", "safe_layout"]

WIDEST_BLOCK = 16  # channels that oneDNN computes at a time with AVX-512, its widest vectors


def safe_layout(x: Tensor, weight: Tensor, stride: Sequence[int]) -> Tensor:
    """The input of a convolution, made channels-first if oneDNN would write past its buffer.

    Args:
        x: `[B, C, H, W]` in any memory format.
        weight: `[O, C / groups, k, k]`.
        stride: Along both axes.
    """
    affected = (
        x.device.type == "cpu"
        and torch.is_grad_enabled()
        and weight.requires_grad
        and tuple(weight.shape[2:]) == (1, 1)
        and max(stride) > 1
        and weight.shape[1] < WIDEST_BLOCK
    )
    return x.contiguous() if affected else x


def guard_strided(network: nn.Module) -> None:
    """Make every convolution of a network that triggers the oneDNN error use a safe layout.

    Parameters, names and results stay as they are. Calling it twice changes nothing.
    """
    for module in network.modules():
        pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
        if pointwise and _before not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_before)


def _before(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Runs before each forward pass; the sparse engines have separate convolutions."""
    if isinstance(inputs[0], SiteTensor):
        return None
    return (safe_layout(inputs[0], module.weight, module.stride), *inputs[1:])
