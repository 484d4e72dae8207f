"""A small ViT for tests of teachers."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn

SMALL: dict[str, Any] = {"patch_size": 8, "depth": 3, "embed_dim": 48, "num_classes": 0}


def small_vit(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=64, **{**SMALL, **more}).eval()
