"""Foreign ONNX files: unsupported inputs and outputs are rejected with a line that names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters.calibrate import METHODS
from exporters.choices import FLAVORS
from exporters.errors import ExportError
from exporters.onnx_info import graph_precision, onnx_info, read_onnx, require_image_input
from exporters.quantize import quantize_int8
from exporters.runtimes.ort import OrtSession

FLOATS = ["batch", 3, 8, 8]


def value(name: str, kind: int = TensorProto.FLOAT, shape: object = FLOATS) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)  # type: ignore[arg-type]


def typed(name: str, make: Callable[[onnx.TypeProto], onnx.TypeProto]) -> onnx.ValueInfoProto:
    inner = helper.make_tensor_type_proto(TensorProto.FLOAT, FLOATS)
    return helper.make_value_info(name, make(inner))


def save(
    path: Path,
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    *,
    operator: str = "Relu",
    domain: str = "",
    opset: int = 17,
    ir: int = 8,
) -> Path:
    node = helper.make_node(
        operator, [one.name for one in inputs[:1]], [outputs[0].name], domain=domain, name="n"
    )
    opsets = [helper.make_opsetid(domain, opset)]
    graph = helper.make_graph([node], "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir)
    path.write_bytes(model.SerializeToString())
    return path


FOREIGN = {
    "sequence output": {
        "inputs": [value("x")],
        "outputs": [typed("y", helper.make_sequence_type_proto)],
        "operator": "SequenceConstruct",
        "reported": "output 'y' is of type 'sequence'",
    },
    "optional input": {
        "inputs": [typed("x", helper.make_optional_type_proto)],
        "outputs": [value("y")],
        "operator": "OptionalGetElement",
        "reported": "input 'x' is of type 'optional'",
    },
    "bfloat16": {
        "inputs": [value("x", TensorProto.BFLOAT16)],
        "outputs": [value("y", TensorProto.BFLOAT16)],
        "reported": "input 'x' holds values of type bfloat16",
    },
    "bfloat16 output": {
        "inputs": [value("x")],
        "outputs": [value("y", TensorProto.BFLOAT16)],
        "operator": "Identity",
        "reported": "output 'y' holds values of type bfloat16",
    },
    "strings": {
        "inputs": [value("x", TensorProto.STRING)],
        "outputs": [value("y", TensorProto.STRING)],
        "operator": "Identity",
        "reported": "input 'x' holds values of type string",
    },
    "unknown rank": {
        "inputs": [value("x", shape=None)],
        "outputs": [value("y")],
        "reported": "input 'x' has no stated number of axes",
    },
    "an axis of size 0": {
        "inputs": [value("x", shape=["batch", 0])],
        "outputs": [value("y", shape=["batch", 0])],
        "reported": "input 'x' has an axis of size 0",
    },
    "format too new": {
        "inputs": [value("x")],
        "outputs": [value("y")],
        "ir": 99,
        "reported": "not a valid ONNX model: ",
    },
}


@pytest.mark.parametrize("network", FOREIGN.values(), ids=FOREIGN.keys())
def test_what_cannot_be_fed_or_read_is_named(tmp_path: Path, network: dict[str, object]) -> None:
    reported = str(network["reported"])
    path = save(tmp_path / "n.onnx", **{k: v for k, v in network.items() if k != "reported"})  # type: ignore[arg-type]

    with pytest.raises(ExportError) as refusal:
        onnx_info(path)

    assert reported in refusal.value.message
    assert str(path) in refusal.value.message
    assert "\n" not in refusal.value.message
    assert refusal.value.hint


@pytest.mark.parametrize(("domain", "opset"), [("my.own", 1), ("", 999)])
def test_operators_that_onnx_runtime_lacks_are_refused_in_one_line(
    tmp_path: Path, domain: str, opset: int
) -> None:
    path = save(
        tmp_path / "n.onnx", [value("x")], [value("y")], operator="Relu", domain=domain, opset=opset
    )

    with pytest.raises(ExportError) as refusal:
        onnx_info(path)
        OrtSession(path)

    assert str(path) in refusal.value.message
    assert "\n" not in refusal.value.message


@pytest.mark.parametrize(
    ("inputs", "reported"),
    [
        ([value("x"), value("size")], "one input is expected, it has 'x', 'size'"),
        ([value("x", shape=[])], r"input 'x' is float32[], no images"),
        ([value("x", TensorProto.INT64)], "input 'x' is int64['batch', 3, 8, 8], no images"),
    ],
)
def test_only_a_network_with_one_batch_of_images_answers_for_images(
    tmp_path: Path, inputs: list[onnx.ValueInfoProto], reported: str
) -> None:
    path = save(tmp_path / "n.onnx", inputs, [value("y")], operator="Identity")

    with pytest.raises(ExportError) as refusal:
        require_image_input(path, onnx_info(path))

    assert reported in refusal.value.message


def test_a_plain_network_is_described(tmp_path: Path) -> None:
    path = save(tmp_path / "n.onnx", [value("x")], [value("y")])

    info = onnx_info(path)

    assert (info.opset, info.inputs[0].shape, info.outputs[0].dtype) == (
        17,
        tuple(FLOATS),
        "float32",
    )
    assert require_image_input(path, info).name == "x"


@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.parametrize("method", METHODS)
def test_a_foreign_network_computes_nearly_the_same_in_int8(
    tmp_path: Path, method: str, flavor: str
) -> None:
    random = np.random.default_rng(0)
    path, small = tmp_path / "n.onnx", tmp_path / "small.onnx"
    first, second = (random.normal(size=s).astype(np.float32) for s in [(8, 3, 3, 3), (4, 8, 3, 3)])
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w"], ["y"], name="second"),
    ]
    weights = [numpy_helper.from_array(first, "v"), numpy_helper.from_array(second, "w")]
    graph = helper.make_graph(
        nodes, "g", [value("x")], [value("y", shape=["batch", 4, 4, 4])], weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    images = random.normal(size=(16, 3, 8, 8)).astype(np.float32)

    done = quantize_int8(path, small, images=images, method=method, flavor=flavor)

    wanted, got = (OrtSession(file).infer({"x": images})["y"] for file in (path, small))
    assert done.quantized == 2
    assert graph_precision(read_onnx(small)) == "int8"
    # The median: `mean` clips rare values on purpose.
    assert 0 < np.median(np.abs(wanted - got)) < 0.02 * np.abs(wanted).max()
