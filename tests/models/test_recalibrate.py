from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hgkd_edge.models.backbone import BackboneSpec
from hgkd_edge.models.recalibrate import recalibrate_batchnorm

SPEC = BackboneSpec("", 4, (8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)


class Grays:
    """Images of one gray each, from black to white."""

    def __init__(self, count: int) -> None:
        grays = torch.linspace(0, 255, count).round().to(torch.uint8)
        self.images = grays[:, None, None, None].expand(-1, 3, 8, 8)

    def __len__(self) -> int:
        return len(self.images)


def statistics(before: nn.Module, count: int) -> tuple[float, float]:
    """Mean and standard deviation that a BatchNorm after `before` has for its first channel."""
    norm, source = nn.BatchNorm2d(3), Grays(count)
    network: Any = nn.Sequential(before, nn.Conv2d(3, 3, kernel_size=1), norm)
    nn.init.dirac_(network[1].weight)
    nn.init.zeros_(network[1].bias)
    recalibrate_batchnorm(network, source, SPEC)  # type: ignore[arg-type]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean[0].item(), norm.running_var[0].sqrt().item()


@pytest.mark.parametrize("count", [100, 128, 129, 132, 300])
def test_every_image_counts_alike_however_many_there_are(count: int) -> None:
    mean, deviation = statistics(nn.Identity(), count)

    assert mean == pytest.approx(0.5, abs=0.02)
    assert deviation == pytest.approx(1 / 12**0.5, rel=0.03)


def test_statistics_are_those_of_the_network_without_dropout() -> None:
    assert statistics(nn.Dropout(0.5), 128) == statistics(nn.Identity(), 128)
