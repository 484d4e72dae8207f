import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from exporters import runtimes
from exporters.errors import ConversionFailed, ExportError
from exporters.onnx_export import export_onnx
from exporters.onnx_info import onnx_info
from exporters.runtimes.ort import OrtSession

from .conftest import SIZE, settled

NETWORKS = ["resnet18", "mobilenetv3_small_100", "convnext_atto", "regnety_002"]


@pytest.mark.parametrize("name", [*NETWORKS, "efficientnet_lite0"])
def test_batch_axis_is_free_and_numbers_agree(exported, images, name):
    network = exported(name)
    wanted = runtimes.open(network.model, names=["logits"]).run
    got = runtimes.open(network.path).run

    for batch in (1, 2, 5, 16):
        expected = wanted(images[:batch])["logits"]
        actual = got(images[:batch])["logits"]
        assert actual.shape == (batch, 10)
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_tensorrt_8_6_can_read_every_node(exported, name):
    # Opset 17 in the file, and no reduction with its axes as an input: TensorRT 8.6 ignored those.
    model = onnx.load(exported(name).path)

    assert [entry.version for entry in model.opset_import] == [17]
    reductions = [node for node in model.graph.node if node.op_type.startswith("Reduce")]
    assert reductions
    assert all(len(node.input) == 1 for node in reductions)


@pytest.mark.parametrize("name", NETWORKS)
def test_batch_norms_and_pooling_leave_nothing_behind(exported, name):
    model = onnx.load(exported(name).path)

    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"BatchNormalization", "Gather", "Range", "Shape", "Dropout", "Identity"}


def test_nodes_are_named_after_modules(exported):
    names = {node.name for node in onnx.load(exported("resnet18").path).graph.node}

    assert {"conv1/Conv", "layer2.0.downsample.0/Conv", "layer3.1.conv2/Conv", "fc/Gemm"} <= names


def test_file_says_what_it_is_and_nothing_of_this_machine(exported):
    path = exported("resnet18").path
    info = onnx_info(path)

    assert info.metadata == {"classes": '["a", "b"]'}
    assert info.inputs[0].shape == ("batch", 3, SIZE, SIZE)
    assert info.outputs[0].shape == ("batch", 10)
    assert info.precision == "fp32"
    assert json.dumps(info.to_dict())
    assert str(Path(torch.__file__).parent.parent).encode() not in path.read_bytes()


def test_feature_maps_are_named_by_stride(tmp_path, images):
    model = settled("resnet18", shallow=True, features_only=True, out_indices=(1, 2, 3, 4))

    written = export_onnx(model, tmp_path / "maps.onnx", input_size=(3, SIZE, SIZE))

    assert [o.name for o in written.outputs] == ["stride4", "stride8", "stride16", "stride32"]
    assert written.outputs[3].shape == ("batch", 256, 2, 2)


def test_backbone_without_classifier_gives_an_embedding(tmp_path):
    model = settled("resnet18", shallow=True, num_classes=0)

    written = export_onnx(model, tmp_path / "e.onnx", input_size=(3, SIZE, SIZE))

    assert [(o.name, o.shape) for o in written.outputs] == [("embedding", ("batch", 256))]


def test_fixed_batch_has_no_free_axis(tmp_path):
    model = settled("resnet18", shallow=True, num_classes=10)

    written = export_onnx(
        model, tmp_path / "one.onnx", input_size=(3, SIZE, SIZE), dynamic_batch=False
    )

    assert written.inputs[0].shape == (1, 3, SIZE, SIZE)
    assert written.outputs[0].shape == (1, 10)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "convnext_atto"])
def test_free_height_and_width_give_pytorch_s_numbers_at_any_size(tmp_path, name):
    model = settled(name, shallow=True, num_classes=10)
    path = tmp_path / "free.onnx"

    written = export_onnx(model, path, input_size=(3, SIZE, SIZE), dynamic_size=True)

    assert written.inputs[0].shape == ("batch", 3, "height", "width")
    for batch, height, width in ((1, 64, 64), (2, 96, 160), (1, 75, 53)):
        images = np.random.default_rng(0).normal(size=(batch, 3, height, width)).astype(np.float32)
        expected = runtimes.open(model, names=["logits"]).run(images)["logits"]
        actual = runtimes.open(path).run(images)["logits"]
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


class Scaled(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x.mean((2, 3))


def test_networks_that_differ_in_one_number_are_converted_apart(tmp_path):
    images = np.ones((1, 3, 8, 8), np.float32)

    for factor in (2.0, 3.0):
        path = tmp_path / f"{factor}.onnx"
        export_onnx(Scaled(factor), path, input_size=(3, 8, 8))
        np.testing.assert_allclose(runtimes.open(path).run(images)["logits"], factor)


class FrozenSize(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], 3 * 8 * 8)[:, :4]


def test_a_size_that_is_not_free_after_all_is_one_clear_error(tmp_path):
    with pytest.raises(ConversionFailed):
        export_onnx(FrozenSize(), tmp_path / "m.onnx", input_size=(3, 8, 8), dynamic_size=True)

    assert list(tmp_path.iterdir()) == []


def test_the_model_is_left_as_it_was(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).half().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}

    export_onnx(model, tmp_path / "m.onnx", input_size=(3, 8, 8))

    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_exporter_prints_nothing_on_stdout(tmp_path, capfd, caplog):
    caplog.set_level(logging.DEBUG)

    export_onnx(nn.Conv2d(3, 4, 3), tmp_path / "m.onnx", input_size=(3, 8, 8))

    assert capfd.readouterr().out == ""


class FrozenBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, -1)[:, :4]


class Unsupported(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.i0e(x)


class NotTensors(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": x}


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        (FrozenBatch(), ConversionFailed, "batch"),
        (Unsupported(), ConversionFailed, "cannot be expressed in ONNX"),
        (NotTensors(), ExportError, "returns str"),
        (nn.Conv2d(4, 4, 3), ExportError, "does not run on images"),
    ],
)
def test_a_model_that_cannot_be_exported_is_one_clear_error(tmp_path, model, error, says):
    with pytest.raises(error, match=says) as caught:
        export_onnx(model, tmp_path / "m.onnx", input_size=(3, 8, 8))

    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_path_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(ExportError, match="cannot write") as caught:
        export_onnx(nn.Conv2d(3, 4, 3), tmp_path / "file" / "m.onnx", input_size=(3, 8, 8))

    assert caught.value.exit_code == 2


def test_a_failed_export_leaves_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    export_onnx(nn.Conv2d(3, 4, 3), path, input_size=(3, 8, 8))
    before = path.read_bytes()
    monkeypatch.setattr("exporters.onnx_export._save", _half_written)

    with pytest.raises(ExportError):
        export_onnx(nn.Conv2d(3, 4, 3), path, input_size=(3, 8, 8))

    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def _half_written(model: onnx.ModelProto, path: Path) -> None:
    path.write_bytes(model.SerializeToString()[:200])
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"not onnx" + b])
def test_a_corrupt_file_is_one_clear_error(exported, tmp_path, damage):
    path = tmp_path / "bad.onnx"
    path.write_bytes(damage(exported("mobilenetv3_small_100").path.read_bytes()))

    with pytest.raises(ExportError, match="not a valid ONNX model"):
        onnx_info(path)


def test_an_operator_unknown_to_the_runtime_is_one_clear_error(tmp_path):
    node = onnx.helper.make_node("Teleport", ["images"], ["y"], domain="nowhere")
    value = onnx.helper.make_tensor_value_info
    shape = [1, 3, 8, 8]
    graph = onnx.helper.make_graph([node], "g", [value("images", 1, shape)], [value("y", 1, shape)])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("nowhere", 1)]
    path = tmp_path / "m.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), path)

    with pytest.raises(ConversionFailed, match="Teleport"):
        OrtSession(path)


def test_a_network_that_needs_a_newer_opset_is_recorded_with_it(tmp_path: Path) -> None:
    made = export_onnx(nn.Mish(), tmp_path / "net.onnx", input_size=(3, 8, 8))

    assert made.opset == onnx_info(made.path).opset == 18
