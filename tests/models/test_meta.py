"""Networks on the meta device: the names and shapes of the real ones, and nothing computed."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hgkd_edge.models.meta import on_meta

FAMILIES = ["resnet18", "mobilenetv3_small_100", "convnext_atto", "vit_tiny_patch16_224"]
DRAWING = {"normal_", "normal", "uniform_", "uniform", "erfinv_", "clamp_", "mul_", "add_"}


class Computed(TorchDispatchMode):
    """Names of the operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", FAMILIES)
def test_networks_have_the_names_and_shapes_of_the_real_ones_and_nothing_is_drawn(
    name: str,
) -> None:
    real, before = timm.create_model(name).state_dict(), torch.get_rng_state()

    with Computed() as computed, on_meta(), on_meta():
        made = timm.create_model(name).state_dict()

    assert {key: (value.shape, value.dtype) for key, value in made.items()} == {
        key: (value.shape, value.dtype) for key, value in real.items()
    }
    assert all(value.is_meta for value in made.values())
    assert not computed.names & DRAWING
    assert torch.equal(torch.get_rng_state(), before)


def test_tensors_that_are_on_the_cpu_all_the_same_are_filled() -> None:
    with on_meta():
        values = torch.full((3,), 2.0, device="cpu").mul_(2)
        drawn = nn.init.trunc_normal_(torch.zeros(1000, device="cpu"))

    assert values.tolist() == [4, 4, 4]
    assert drawn.std() > 0.5


def test_afterwards_networks_have_weights_again_even_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="unknown"), on_meta():
        timm.create_model("unknown")

    layer = torch.nn.Linear(4, 4)
    assert not layer.weight.is_meta
    assert layer.weight.std() > 0
