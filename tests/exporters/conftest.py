"""Real networks with settled statistics, photo-like images, and exports shared by the tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

SIZE = 64


def photo_like(count: int, *, seed: int = 0, size: int = SIZE) -> np.ndarray:
    """f32[count, 3, size, size]: smooth colored blobs with grain, normalized like photos."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, 3, 8, 8))
    smooth = coarse.repeat(size // 8, axis=2).repeat(size // 8, axis=3)
    for axis in (2, 3):
        smooth = sum(np.roll(smooth, shift, axis) for shift in range(-3, 4)) / 7
    return (1.5 * smooth + 0.1 * rng.normal(size=smooth.shape)).astype(np.float32)


def _make_shallow(model) -> None:
    """Leave the first block of each stage, two in the last but one.

    The other blocks of a stage are of the same kinds, and the conversion to ONNX takes as long for
    each.
    """
    if hasattr(model, "blocks"):  # MobileNet, EfficientNet
        stages = list(model.blocks)
    elif hasattr(model, "stages"):  # ConvNeXt
        stages = [stage.blocks for stage in model.stages]
    else:  # ResNet, RegNet
        name = "layer" if hasattr(model, "layer1") else "s"
        stages = [getattr(model, f"{name}{number}") for number in range(1, 5)]
    for stage in stages:
        for block in [*stage._modules][2 if stage is stages[-2] else 1 :]:
            delattr(stage, block)


# Half as wide: the same layers and names, a quarter of the weights. ResNet's first stage keeps its
# width, which is that of its stem: otherwise it would have a projection.
NARROW: dict[str, dict[str, object]] = {
    "resnet18": {"channels": (64, 64, 128, 256)},
    "resnet50": {"channels": (32, 64, 128, 256)},
    "convnext_tiny": {"dims": (48, 96, 192, 384)},
}


@cache
def settled(architecture: str, *, shallow: bool = False, **options: object):
    """A timm model whose outputs depend on its input; shallow: narrow, one block in each stage.

    Freshly made networks have zeroed or tiny residual branches, zero biases and unset batch
    statistics: almost any damage would go unseen in their outputs.
    """
    import timm
    import torch
    from torch import nn

    torch.manual_seed(0)
    if shallow:
        options = {**NARROW.get(architecture, {}), **options}
    model = timm.create_model(architecture, pretrained=False, **options)
    if shallow:
        _make_shallow(model)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # norms, layer scales, biases
            low, high = (-0.2, 0.2) if name.endswith("bias") else (0.5, 1.5)
            nn.init.uniform_(parameter, low, high)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    with torch.no_grad():
        for seed in range(4):
            model.train()(torch.from_numpy(photo_like(16, seed=100 + seed)))
    return model.eval()


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """f32[16, 3, 64, 64]"""
    return photo_like(16)


@dataclass(frozen=True)
class Exported:
    model: object
    path: Path


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Export a ten-class network once per session; tests must not change the file."""

    @cache
    def export(name: str, *, shallow: bool = True) -> Exported:
        from exporters.onnx_export import export_onnx

        model = settled(name, shallow=shallow, num_classes=10)
        path = tmp_path_factory.mktemp("onnx") / f"{name}.onnx"
        export_onnx(model, path, input_size=(3, SIZE, SIZE), metadata={"classes": '["a", "b"]'})
        return Exported(model, path)

    return export
