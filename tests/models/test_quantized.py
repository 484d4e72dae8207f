"""Training with INT8 simulated: the grid it learns on is the grid of the exported file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from torch import nn

from exporters import runtimes
from exporters.calibrate import calibrate
from exporters.errors import ExportError
from exporters.onnx_export import export_onnx
from exporters.onnx_info import read_onnx
from exporters.quantize import quantize_int8
from hgkd_edge.errors import ConversionError, MissingPackageError
from hgkd_edge.models import quantized
from hgkd_edge.models.quantized import input_ranges, simulate_int8, take_rounded_weights

needs_modelopt = pytest.mark.skipif(find_spec("modelopt") is None, reason="needs the extra qat")
IMAGES = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 4 - 2


def resnet() -> nn.Module:
    return timm.create_model("resnet18", num_classes=5, channels=[8, 16, 24, 32])


def mobilenet() -> nn.Module:
    return timm.create_model("mobilenetv3_small_050", num_classes=5)


def convnext() -> nn.Module:
    return timm.create_model(
        "convnext_atto", num_classes=5, depths=[1, 1, 1, 1], dims=[8, 8, 16, 16]
    )


class SharedHead(nn.Module):
    """One convolution on two maps, as detection heads have, and an upsampling one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.head = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.stem(images).relu()
        fine = self.head(self.up(maps))
        return fine.mean(dim=(2, 3)) + self.head(3 * maps).mean(dim=(2, 3))


def with_statistics(make: Callable[[], nn.Module]) -> nn.Module:
    """A network whose BatchNorms have seen the images."""
    torch.manual_seed(0)
    network = make().train()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network(IMAGES)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    return network.eval()


def train_a_little(simulated: nn.Module) -> None:
    optimizer = torch.optim.SGD(simulated.parameters(), lr=1e-3)
    simulated.train()
    for _ in range(2):
        simulated(IMAGES).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    simulated.eval()


@needs_modelopt
@pytest.mark.parametrize("make", [resnet, mobilenet, convnext, SharedHead])
def test_the_exported_file_computes_what_was_simulated_in_training(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    plain = with_statistics(make)
    simulated = simulate_int8(copy.deepcopy(plain), [IMAGES])
    train_a_little(simulated)
    wanted = runtimes.open(simulated, names=["logits"]).run(IMAGES.numpy())["logits"]
    ranges = input_ranges(simulated)

    take_rounded_weights(simulated, plain)
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    export_onnx(plain, fp32, input_size=(3, 64, 64), output_names=["logits"])
    model = read_onnx(fp32)
    calibration = calibrate(model, IMAGES.numpy(), method="minmax", learned=ranges)
    quantize_int8(fp32, int8, calibration=calibration, flavor="tensorrt")

    got = runtimes.open(int8).run(IMAGES.numpy())["logits"]
    assert np.abs(got - wanted).max() < 0.1 * np.ptp(wanted, axis=0).max()


@needs_modelopt
@pytest.mark.parametrize("make", [resnet, mobilenet])
def test_quantizing_rounded_weights_changes_none_of_them(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    plain = with_statistics(make)
    simulated = simulate_int8(copy.deepcopy(plain), [IMAGES])
    train_a_little(simulated)

    take_rounded_weights(simulated, plain)

    for name in input_ranges(simulated):
        weight = plain.get_submodule(name).weight.detach()
        levels = weight / (
            weight.abs().flatten(1).amax(1).view(-1, *[1] * (weight.dim() - 1)) / 127
        )
        assert (levels - levels.round()).abs().max() < 1e-3, name


@needs_modelopt
def test_the_classifier_stays_in_float_and_all_other_layers_are_simulated() -> None:
    network = with_statistics(mobilenet)
    layers = {n for n, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}

    ranges = input_ranges(simulate_int8(network, [IMAGES]))

    assert set(ranges) == layers - {"classifier"}
    assert all(size > 0 for size in ranges.values())


@needs_modelopt
def test_nothing_is_printed_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    simulate_int8(SharedHead(), [IMAGES])

    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "layer", [timm.layers.StdConv2d, timm.layers.ScaledStdConv2d, timm.layers.Conv2dSame]
)
def test_a_layer_that_would_silently_stay_in_float_is_refused(layer: type[nn.Conv2d]) -> None:
    with pytest.raises(ConversionError, match=f"layer '0' \\({layer.__name__}\\)"):
        simulate_int8(nn.Sequential(layer(3, 4, 3)), [IMAGES])


def test_without_modelopt_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "modelopt.torch.quantization", None)

    with pytest.raises(MissingPackageError) as caught:
        quantized.require_modelopt()

    assert caught.value.hint == 'pip install "hgkd-edge[qat]"'


@pytest.mark.parametrize("learned", [0.5, 2.0])
def test_learned_ranges_replace_those_that_calibration_found(
    tmp_path: Path, learned: float
) -> None:
    path = tmp_path / "net.onnx"
    export_onnx(SharedHead(), path, input_size=(3, 64, 64), output_names=["logits"])
    model = read_onnx(path)
    seen = calibrate(model, IMAGES.numpy(), method="minmax")

    ranges = {"stem": learned, "head": learned}
    changed = calibrate(model, IMAGES.numpy(), method="minmax", learned=ranges)

    inputs = {node.input[0] for node in model.graph.node if node.name.startswith(("stem", "head"))}
    assert len(inputs) == 3, "the image and two maps"
    assert {changed.largest(tensor) for tensor in inputs} == {learned}
    (other,) = [node.input[0] for node in model.graph.node if node.name.startswith("up/")]
    clips = learned < IMAGES.abs().max()
    assert (changed.largest(other) < seen.largest(other)) == clips, "it runs as in training"
    assert seen.largest("images") != learned, "the calibration itself is unchanged"


def test_learned_ranges_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export_onnx(SharedHead(), path, input_size=(3, 64, 64), output_names=["logits"])
    model: onnx.ModelProto = read_onnx(path)

    with pytest.raises(ExportError, match="layer4.1.conv2"):
        calibrate(model, IMAGES.numpy(), learned={"stem": 1.0, "layer4.1.conv2": 1.0})
