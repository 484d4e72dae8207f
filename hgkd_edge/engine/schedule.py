"""The learning rate schedule."""

from __future__ import annotations

import math

from hgkd_edge.recipe_sections import TrainConfig

__all__ = ["learning_rate"]


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int, total: int) -> float:
    """The learning rate of a step: linear warm-up, then cosine to zero, or constant.

    Args:
        config: `lr`, `warmup_epochs` and `schedule`.
        step: From 0.
        steps_per_epoch: Updates in an epoch.
        total: Updates of the whole training.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return config.lr
    progress = (step - warmup) / max(1.0, total - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
