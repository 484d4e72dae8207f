"""INT8 sums are exact on every CPU: on x86 without VNNI, ONNX Runtime would add in 16 bits."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters.runtimes.ort import OrtSession
from hgkd_edge.bundles.device import predict

WEIGHTS, VALUES = 127, 255  # the products of two pairs exceed 16 bits


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A quantized convolution of the largest values: every output is 64 * 127 * 255."""
    weights = np.full((4, 64, 1, 1), WEIGHTS, np.int8)
    numbers = {"one": np.float32(1), "zero": np.uint8(0), "none": np.int8(0), "weights": weights}
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "one", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "one", "zero"], ["values"]),
        helper.make_node("DequantizeLinear", ["weights", "one", "none"], ["kernel"]),
        helper.make_node("Conv", ["values", "kernel"], ["sums"]),
        helper.make_node("QuantizeLinear", ["sums", "step", "zero"], ["small"]),
        helper.make_node("DequantizeLinear", ["small", "step", "zero"], ["outputs"]),
    ]
    numbers["step"] = np.float32(64 * WEIGHTS * VALUES / 255)
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 64, 4, 4])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, [1, 4, 4, 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in numbers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "conv.onnx")
    return tmp_path / "conv.onnx"


def on_a_device(path: Path) -> Any:
    runner = importlib.import_module("hgkd_edge.bench.edge.ort_device")
    session = runner.open_session({"model": str(path), "threads": 1})
    return lambda images: session.run(None, {"images": images})[0]


OPENED: dict[str, Callable[[Path], Any]] = {
    "hgkd-edge": lambda path: lambda images: OrtSession(path).infer({"images": images})["outputs"],
    "a bundle": lambda path: lambda images: predict.open_onnx(path)(images)["outputs"],
    "a device": on_a_device,
}


@pytest.mark.parametrize("who", OPENED)
def test_sums_beyond_16_bits_are_exact(file: Path, who: str) -> None:
    outputs = OPENED[who](file)(np.full((1, 64, 4, 4), VALUES, np.float32))

    np.testing.assert_allclose(outputs, 64 * WEIGHTS * VALUES, rtol=1e-6)


def test_layers_that_share_weights_are_opened_all_the_same(file: Path) -> None:
    model = onnx.load(file)
    again = helper.make_node("Conv", ["values", "kernel"], ["again"])
    both = helper.make_node("Add", ["sums", "again"], ["both"])
    model.graph.node.insert(4, again)
    model.graph.node.insert(5, both)
    model.graph.node[6].input[0] = "both"
    onnx.save(model, file)

    shapes = {open(file)(np.zeros((1, 64, 4, 4), np.float32)).shape for open in OPENED.values()}

    assert shapes == {(1, 4, 4, 4)}


def test_the_option_is_known_to_onnxruntime() -> None:
    library = Path(onnxruntime.__file__).parent / "capi"
    (binary,) = library.glob("onnxruntime_pybind11_state*.so")

    assert b"session.x64quantprecision" in binary.read_bytes()
