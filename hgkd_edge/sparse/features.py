"""Gives the outputs of timm's feature networks one form: a list of maps, channels first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["feature_list", "plain_maps"]


def feature_list(maps: Any) -> list[Any]:
    """The maps of any timm feature network, which may return a list, tuple or dict."""
    return list(maps.values()) if isinstance(maps, Mapping) else list(maps)


def plain_maps(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Maps `[B, C_s, H / s, W / s]` of a network on whole images `[B, 3, H, W]`.

    The images are passed channels-last, in which convolutions are at least as fast.
    """
    maps = feature_list(network(images.contiguous(memory_format=torch.channels_last)))
    if str(getattr(getattr(network, "output_fmt", None), "value", "NCHW")) == "NHWC":
        return [m.permute(0, 3, 1, 2) for m in maps]
    return maps
