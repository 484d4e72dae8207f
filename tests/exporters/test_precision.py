"""fp16 and INT8 files: made, run, compared with fp32, and built into engines."""

import numpy as np
import onnx
import pytest

from exporters.choices import FLAVORS
from exporters.errors import ExportError
from exporters.fp16 import convert_fp16, overflowing_nodes
from exporters.onnx_info import onnx_info, read_onnx
from exporters.quantize import quantize_int8
from exporters.trt_build import available, build_engine
from exporters.verify import Tolerance, verify_onnx

from .conftest import photo_like

HAS_RTX = any(flavor.name == "tensorrt_rtx" for flavor in available())
# The margins between an untrained network's classes are smaller than INT8's error (a quarter of the
# classes change), so only the direction is checked; classes need a trained network.
UNTRAINED = Tolerance(relative=None, cosine=0.97, top1=0.0)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_100"])
def test_fp16_halves_the_file_keeps_the_answers_and_builds(exported, images, tmp_path, name):
    source = exported(name).path

    half = convert_fp16(source, tmp_path / "net.onnx", images=images)

    info = onnx_info(half.path)
    assert half.size_bytes < 0.55 * source.stat().st_size
    assert (info.precision, info.inputs[0].dtype) == ("fp16", "float32")
    assert info.metadata == onnx_info(source).metadata
    assert verify_onnx(source, half.path, images, precision="fp16").passed
    if HAS_RTX:
        built = build_engine(half.path, tmp_path / "net.plan", backend="tensorrt_rtx")
        assert built.precision == "fp16"


def test_layers_that_overflow_in_half_precision_are_kept_in_fp32(exported, images, tmp_path):
    model = onnx.load(exported("resnet18").path)
    first = next(w for w in model.graph.initializer if w.name == "conv1.weight")
    loud = onnx.numpy_helper.to_array(first) * 1e5
    first.CopyFrom(onnx.numpy_helper.from_array(loud, first.name))
    source = tmp_path / "loud.onnx"
    onnx.save(model, source)

    half = convert_fp16(source, tmp_path / "half.onnx", images=images)

    assert "conv1/Conv" in half.kept_fp32
    assert verify_onnx(source, half.path, images, precision="fp16").passed
    assert "conv1/Conv" in overflowing_nodes(read_onnx(source), images)


@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_int8_keeps_the_direction_of_the_outputs(exported, images, tmp_path, name, flavor):
    source = exported(name).path

    small = quantize_int8(
        source, tmp_path / "net.onnx", images=photo_like(64, seed=7), flavor=flavor
    )

    result = verify_onnx(source, small.path, images, precision="int8", tolerance=UNTRAINED)
    assert result.passed, result.describe()
    assert onnx_info(small.path).precision == "int8"
    if HAS_RTX and flavor == "tensorrt":
        assert build_engine(small.path, tmp_path / "n.plan", backend="tensorrt_rtx").size_bytes


def test_tensorrt_flavor_is_symmetric_with_float_biases_and_one_scale_per_skip(exported, tmp_path):
    path = tmp_path / "net.onnx"
    quantize_int8(exported("resnet18").path, path, images=photo_like(16), flavor="tensorrt")
    graph = onnx.load(path).graph
    values = {w.name: onnx.numpy_helper.to_array(w) for w in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}

    quantize = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert all(not values[node.input[2]].any() for node in quantize)
    assert all(values[node.input[2]].dtype == np.int8 for node in quantize)
    for conv in (node for node in graph.node if node.op_type == "Conv"):
        assert [makers[name].op_type for name in conv.input[:2]] == ["DequantizeLinear"] * 2
        assert all(values[name].dtype == np.float32 for name in conv.input[2:])
    for add in (node for node in graph.node if node.op_type == "Add"):
        kinds = sorted(makers[name].op_type for name in add.input)
        assert kinds == ["Conv", "DequantizeLinear"]


def test_a_block_kept_in_float_keeps_its_skip_in_float(exported, tmp_path):
    path = tmp_path / "net.onnx"
    quantize_int8(exported("resnet18").path, path, images=photo_like(16), keep_float=["layer2.0"])
    graph = onnx.load(path).graph
    makers = {output: node for node in graph.node for output in node.output}

    sums = {node.name: node for node in graph.node if node.op_type == "Add"}
    quantized = {
        name: "DequantizeLinear" in [makers[one].op_type for one in node.input]
        for name, node in sums.items()
    }
    assert quantized == {name: not name.startswith("layer2.0") for name in sums}
    assert len(sums) > sum(quantized.values()) > 0


@pytest.mark.parametrize("flavor", FLAVORS)
def test_a_classifiers_last_layer_stays_in_float(exported, tmp_path, flavor):
    path = tmp_path / "net.onnx"

    made = quantize_int8(exported("resnet18").path, path, images=photo_like(16), flavor=flavor)

    assert made.kept_float == ("fc/Gemm",)
    graph = onnx.load(path).graph
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in graph.initializer}
    (head,) = (node for node in graph.node if node.op_type == "Gemm")
    assert weights[head.input[1]].dtype == np.float32
    assert graph.output[0].name == head.output[0]


@pytest.mark.parametrize("images", [None, np.empty((0, 3, 64, 64), np.float32)])
def test_int8_without_real_images_is_an_error(exported, tmp_path, images):
    with pytest.raises(ExportError, match="real calibration images") as caught:
        quantize_int8(exported("resnet18").path, tmp_path / "net.onnx", images=images)

    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_does_not_exist_cannot_be_kept(exported, tmp_path):
    with pytest.raises(ExportError, match="no layer 'layer9'"):
        convert_fp16(exported("resnet18").path, tmp_path / "n.onnx", keep_fp32=["layer9"])
