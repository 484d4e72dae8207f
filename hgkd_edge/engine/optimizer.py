"""The optimizer of a training: timm's, with weight decay and `layer_decay`."""

from __future__ import annotations

from typing import Any

from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer

from hgkd_edge.recipe_sections import TrainConfig

__all__ = ["make_optimizer"]


def make_optimizer(
    model: nn.Module, config: TrainConfig, *, layer_decay: float | None
) -> Optimizer:
    """timm's optimizer of this name; biases and norms have no weight decay.

    Args:
        model: On its device.
        config: `optimizer`, `lr` and `weight_decay`.
        layer_decay: Factor of the learning rate from each layer to the one before; None: equal.
    """
    options: dict[str, Any] = {"betas": (0.9, 0.95)}
    if config.optimizer == "adamw":  # one fused pass; LAMB has no such form
        options["fused"] = True
    else:  # gradients are clipped only by `clip_grad`
        options["max_grad_norm"] = None
    return create_optimizer_v2(
        model,
        config.optimizer,
        lr=config.lr,
        weight_decay=config.weight_decay,
        layer_decay=layer_decay,
        **options,
    )
