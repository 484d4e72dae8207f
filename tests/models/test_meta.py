"""Networks without weights: the names and shapes of the real ones, and nothing computed."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hgkd_edge.models.meta import on_meta


class Computed(TorchDispatchMode):
    """Names of the operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv3_small_100", "convnext_atto", "vit_tiny_patch16_224"]
)
def test_they_have_the_names_and_shapes_of_the_real_ones_and_nothing_is_drawn(name: str) -> None:
    real = timm.create_model(name).state_dict()

    with Computed() as computed, on_meta():
        made = timm.create_model(name).state_dict()

    assert {key: value.shape for key, value in made.items()} == {
        key: value.shape for key, value in real.items()
    }
    assert all(value.is_meta for value in made.values())
    drawing = {"normal_", "normal", "uniform_", "uniform", "erfinv_", "clamp_"}
    assert not computed.names & drawing


def test_afterwards_networks_have_weights_again() -> None:
    with on_meta():
        timm.create_model("resnet18")

    layer = torch.nn.Linear(4, 4)
    assert not layer.weight.is_meta
    assert layer.weight.std() > 0
