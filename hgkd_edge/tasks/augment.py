"""Augmentation of labeled images: TrivialAugment, RandAugment, MixUp and CutMix of torchvision.

All draw from torch's generator, which the engine seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torchvision.transforms import v2

from hgkd_edge.tasks.config import ClassifyConfig

__all__ = ["augmentation", "mixing"]


def augmentation(options: ClassifyConfig) -> Callable[[Tensor], Tensor] | None:
    """Augment one image, uint8 [3, H, W]."""
    if options.augment == "none":
        return None
    return v2.TrivialAugmentWide() if options.augment == "trivial" else v2.RandAugment()


def mixing(options: ClassifyConfig, num_classes: int) -> Callable[..., Any] | None:
    """Mix a batch with MixUp or CutMix; picks either with equal probability if both are enabled."""
    ways: list[nn.Module] = []
    if options.mixup:
        ways.append(v2.MixUp(alpha=options.mixup, num_classes=num_classes))
    if options.cutmix:
        ways.append(v2.CutMix(alpha=options.cutmix, num_classes=num_classes))
    return v2.RandomChoice(ways) if ways else None
