"""What several processes exchange around a captured pass.

DistributedDataParallel exchanges gradients during the backward pass, from hooks that a CUDA graph
does not replay. So the model of a captured pass is not wrapped, and this module exchanges the
gradients explicitly.
"""

from __future__ import annotations

import torch
from torch import distributed, nn

__all__ = ["average_gradients", "same_start"]


def same_start(model: nn.Module) -> None:
    """Give every process the weights and buffers of the first process."""
    for value in model.state_dict().values():
        sent = value.contiguous()
        distributed.broadcast(sent, 0)
        value.copy_(sent)


def average_gradients(model: nn.Module) -> None:
    """Replace each gradient by its mean over processes: one exchange for each dtype."""
    found = [weight.grad for weight in model.parameters() if weight.grad is not None]
    for dtype in dict.fromkeys(grad.dtype for grad in found):
        grads = [grad for grad in found if grad.dtype == dtype]
        flat = torch.cat([grad.flatten() for grad in grads]).div_(distributed.get_world_size())
        distributed.all_reduce(flat)
        parts = flat.split([grad.numel() for grad in grads])
        means = [part.view(grad.shape) for part, grad in zip(parts, grads, strict=True)]
        torch._foreach_copy_(grads, means)
