"""Small real ONNX networks, made without torch, for everything in this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from exporters.quantize import quantize_int8
from hgkd_edge.bench.records import Warmup

MakeModel = Callable[..., Path]


def build_convnet(
    *,
    width: int = 16,
    layers: int = 3,
    side: int = 32,
    batch: int | str = "batch",
    dtype: type = np.float32,
    metadata: dict[str, str] | None = None,
) -> onnx.ModelProto:
    """[B, 3, side, side] -> `layers` 3x3 convolutions with ReLU -> global mean -> [B, width]."""
    rng = np.random.default_rng(0)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, weights, last, channels = [], [], "images", 3
    for index in range(layers):
        kernel = rng.standard_normal((width, channels, 3, 3)) / np.sqrt(9 * channels)
        weights.append(numpy_helper.from_array(kernel.astype(dtype), f"w{index}"))
        nodes.append(
            helper.make_node(
                "Conv",
                [last, f"w{index}"],
                [f"c{index}"],
                name=f"conv{index}",
                kernel_shape=[3, 3],
                pads=[1, 1, 1, 1],
            )
        )
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        last, channels = f"r{index}", width
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["features"]))
    graph = helper.make_graph(
        nodes,
        "convnet",
        [helper.make_tensor_value_info("images", kind, [batch, 3, side, side])],
        [helper.make_tensor_value_info("features", kind, [batch, width])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, metadata or {})
    onnx.checker.check_model(model)
    return model


def quantized(net: Path, flavor: str) -> Path:
    """Quantize a network of `build_convnet`, next to it."""
    images = np.random.default_rng(0).random((8, 3, 32, 32), dtype=np.float32)
    path = net.with_name(f"{net.stem}.int8-{flavor}.onnx")
    return quantize_int8(net, path, images=images, flavor=flavor).path


@pytest.fixture
def already_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the seconds of warm-up in tests about other things."""
    warm = Warmup(runs=1, seconds=0.0, stable=True)
    monkeypatch.setattr("hgkd_edge.bench.timing.warm_up", lambda _case, _plan: warm)


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Write a small network to `tmp_path/<name>.onnx`."""

    def make(name: str = "net", **shape: object) -> Path:
        path = tmp_path / f"{name}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(build_convnet(**shape), path)  # type: ignore[arg-type]
        return path

    return make
