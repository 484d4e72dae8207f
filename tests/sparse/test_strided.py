"""oneDNN writes past its buffer in some convolutions; the guard must avoid them.

The error shows only as a corrupted heap, so the layers run in a separate process.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
from torch import Tensor, nn

from hgkd_edge.models.backbone import create_features
from hgkd_edge.sparse import sparsify
from hgkd_edge.sparse.strided import guard_strided, safe_layout

NARROW = {"channels": [8, 16, 24, 32]}
TRAIN = """
import torch
from timm.layers import StdConv2d
from torch import nn
from hgkd_edge.sparse.strided import guard_strided

for c in (4, 8, 15):
    layers = [
        nn.Conv2d(c, 16, 1, stride=2),
        StdConv2d(c, 16, 1, stride=2),
        nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, 16, 1, stride=(1, 2))),
    ]
    for net in layers:
        guard_strided(net)
        for bfloat16 in (False, True, False, True):
            images = torch.rand(4, c, 96, 96).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", enabled=bfloat16):
                out = net(images.requires_grad_())
            out.float().square().mean().backward()
"""


def test_narrow_strided_layers_train_without_corrupting_memory() -> None:
    done = subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, check=False)

    assert done.returncode == 0, done.stderr.decode()[-300:]


@pytest.mark.parametrize("made_by", ["create_features", "sparsify"])
def test_every_network_made_for_training_is_guarded(made_by: str) -> None:
    if made_by == "sparsify":
        model = timm.create_model("resnet18", features_only=True, **NARROW)
        sparsify(model)
    else:
        model = create_features("resnet18", args=NARROW)
    shortcut = model.get_submodule("layer2.0.downsample.0")
    seen: list[Tensor] = []
    shortcut.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    model(torch.rand(2, 3, 64, 64).contiguous(memory_format=torch.channels_last))

    assert seen[0].is_contiguous()


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "dtype", "trained", "changed"),
    [
        (8, 1, 2, torch.float32, True, True),
        (15, 1, 2, torch.float32, True, True),
        (16, 1, 2, torch.float32, True, False),
        (8, 1, 1, torch.float32, True, False),
        (8, 3, 2, torch.float32, True, False),
        (8, 1, 2, torch.bfloat16, True, True),
        (8, 1, 2, torch.float32, False, False),
    ],
)
def test_only_what_is_affected_changes_its_layout(
    channels: int, kernel: int, stride: int, dtype: torch.dtype, trained: bool, changed: bool
) -> None:
    x = torch.rand(2, channels, 6, 6, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.rand(4, channels, kernel, kernel, requires_grad=True)

    with torch.set_grad_enabled(trained):
        safe = safe_layout(x, weight, (stride, stride))

    assert torch.equal(safe, x)
    assert (safe is not x) == changed


def test_the_guard_changes_neither_names_nor_results_and_is_put_in_once() -> None:
    torch.manual_seed(0)
    plain = timm.create_model("resnet18", **NARROW).eval()
    names, images = list(plain.state_dict()), torch.rand(1, 3, 64, 64)
    wanted = plain(images)

    guard_strided(plain)
    guard_strided(plain)

    assert list(plain.state_dict()) == names
    torch.testing.assert_close(plain(images), wanted)
    convolutions = [m for m in plain.modules() if isinstance(m, nn.Conv2d)]
    assert max(len(m._forward_pre_hooks) for m in convolutions) == 1
