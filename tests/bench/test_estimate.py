"""Estimates: the arithmetic, the word `estimate`, and the error on published latencies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from hgkd_edge.bench.devices import Device, device_table, find_devices
from hgkd_edge.bench.estimate import Layer, estimate_models, estimate_one, layers_of
from hgkd_edge.bench.models import resolve_models
from hgkd_edge.errors import DeviceError

FIGURES = (
    "sms", "compute_capability", "gpu_mhz", "memory_gb", "bandwidth_gbs", "fp16_tflops",
    "int8_tops", "dla", "modes",
)  # fmt: skip

MakeModel = Callable[..., Path]

# MLPerf Inference, edge, closed division, NVIDIA: ResNet-50 v1.5, INT8, single stream, p50 in ms
# (AGX Orin and Orin NX: v3.1; AGX Xavier: v1.1; Xavier NX: v2.0).
MLPERF_MS = {"agx-orin-64": 0.636, "orin-nx-16": 1.078, "agx-xavier": 1.817, "xavier-nx": 2.434}


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-50 v1.5 as an ONNX graph, without its values: only shapes count here."""
    path = tmp_path_factory.mktemp("models") / "resnet50.onnx"
    onnx.save(_resnet([3, 4, 6, 3], bottleneck=True), path)
    return path


@pytest.fixture(scope="module")
def layers(resnet50: Path) -> list[Layer]:
    """The layers of ResNet-50 at batch 1."""
    return layers_of(resolve_models([resnet50])[0], batch=1)


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "resnet18.onnx"
    onnx.save(_resnet([2, 2, 2, 2], bottleneck=False), path)
    return path


def test_operations_are_those_of_resnet50(layers: list[Layer]) -> None:
    assert sum(layer.operations for layer in layers) / 2e9 == pytest.approx(4.09, abs=0.02)


@pytest.mark.parametrize("device", MLPERF_MS)
def test_resnet50_is_within_a_quarter_of_the_published_latency(
    layers: list[Layer], device: str
) -> None:
    found = estimate_one("resnet50", layers, board(device), precision="int8", batch=1)

    assert found.estimated_ms == pytest.approx(MLPERF_MS[device], rel=0.25)


def test_resnet18_on_a_nano_is_within_a_quarter_of_a_users_figure(resnet18: Path) -> None:
    # 90 images/s in FP16 with clocks locked: NVIDIA-AI-IOT/torch2trt issue 188.
    layers = layers_of(resolve_models([resnet18])[0], batch=1)

    found = estimate_one("resnet18", layers, board("nano"), precision="fp16", batch=1)

    assert found.estimated_ms == pytest.approx(1000 / 90, rel=0.25)


def test_one_convolution_by_hand(make_model: MakeModel) -> None:
    model = resolve_models([make_model(width=16, layers=1, side=32)])[0]

    [conv, pool] = layers_of(model, batch=2)

    assert conv.operations == 2 * (2 * 16 * 32 * 32) * (3 * 3 * 3)
    assert conv.elements == 16 * 27 + 2 * 32 * 32 * (3 + 16)
    assert (pool.operations, pool.elements) == (0, 2 * 16 * (32 * 32 + 1))


def test_a_quantized_network_has_the_layers_of_its_source(
    tmp_path: Path, make_model: MakeModel
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"images": np.ones((1, 3, 32, 32), np.float32)}]

        def get_next(self) -> dict | None:
            return self.left.pop() if self.left else None

    plain = make_model()
    quantize_static(plain, tmp_path / "q.onnx", Reader(), quant_format=QuantFormat.QDQ)
    [before, after] = resolve_models([plain, tmp_path / "q.onnx"])

    assert after.precision == "int8"
    assert sum(one.operations for one in layers_of(after, batch=1)) == sum(
        one.operations for one in layers_of(before, batch=1)
    )
    assert sum(one.elements for one in layers_of(after, batch=1)) == sum(
        one.elements for one in layers_of(before, batch=1)
    )


def test_bigger_batches_take_longer_and_give_more_images(resnet50: Path) -> None:
    one, eight = estimate_models(resolve_models([resnet50]), [board("orin-nano-8")], batches=(1, 8))

    assert one.estimated_ms < eight.estimated_ms < 8 * one.estimated_ms
    assert eight.estimated_throughput_ips > one.estimated_throughput_ips


def test_every_estimate_says_so_and_is_kept_apart_from_measurements(make_model: MakeModel) -> None:
    import typer

    from hgkd_edge.cli.bench import bench

    app = typer.Typer()
    app.command()(bench)
    model = make_model()

    shown = CliRunner().invoke(app, [str(model), "--estimate", "--precision", "fp16,int8"])
    data = json.loads(CliRunner().invoke(app, [str(model), "--estimate", "--json"]).stdout)

    rows = [line for line in shown.stdout.splitlines() if "net" in line and "fp16" in line]
    assert len(rows) == len(device_table().devices)
    assert all(row.rstrip().endswith("estimate") for row in rows)
    assert "not a measurement" in shown.stdout
    assert {one["kind"] for one in data["estimates"]} == {"estimate"}
    assert (model.parent / "bench-estimate.json").exists()
    assert not (model.parent / "bench.json").exists()


def test_every_figure_of_every_device_names_its_source() -> None:
    sources = device_table().sources

    for device in device_table().devices:
        figures = [*FIGURES, *(["super"] if device.super_ else [])]
        assert set(device.from_) == set(figures), device.id
        assert set(device.from_.values()) <= set(sources), device.id
        assert set(device.unconfirmed) <= {*figures}, device.id


def test_peaks_follow_from_sms_and_clocks() -> None:
    per_sm = {"7.2": (1024, 2048), "8.7": (2048, 4096), "11.0": (8192, 16384)}

    for device in device_table().devices:
        if device.compute_capability in per_sm:
            half, byte = per_sm[device.compute_capability]
            clock = device.sms * device.gpu_mhz * 1e6 / 1e12
            assert device.fp16_tflops == pytest.approx(half * clock, rel=0.02), device.id
            assert device.int8_tops == pytest.approx(byte * clock, rel=0.02), device.id


def test_the_devices_of_the_promise_are_all_there() -> None:
    assert {device.id for device in device_table().devices} == {
        "nano", "tx2", "xavier-nx", "agx-xavier", "orin-nano-4", "orin-nano-8", "orin-nx-8",
        "orin-nx-16", "agx-orin-32", "agx-orin-64", "agx-thor",
    }  # fmt: skip
    assert len({one.l4t for one in device_table().jetpacks}) == len(device_table().jetpacks)


def test_an_unknown_device_names_the_nearest() -> None:
    with pytest.raises(DeviceError) as refusal:
        find_devices("orin-nan")

    assert "orin-nano-8" in refusal.value.hint


def test_a_family_is_all_its_variants() -> None:
    assert [one.id for one in find_devices("orin-nano")] == ["orin-nano-4", "orin-nano-8"]


def board(name: str) -> Device:
    [device] = find_devices(name)
    return device


def _resnet(blocks: list[int], *, bottleneck: bool) -> onnx.ModelProto:
    """ResNet v1.5 (stride in the 3x3), convolutions with folded normalization."""
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def conv(source: str, cin: int, cout: int, kernel: int, stride: int = 1) -> str:
        name = f"conv{len(weights)}"
        weights.append(
            numpy_helper.from_array(np.zeros((cout, cin, kernel, kernel), np.float32), f"{name}_w")
        )
        pads = [kernel // 2] * 4
        nodes.append(
            helper.make_node("Conv", [source, f"{name}_w"], [name], name=name, pads=pads,
                             strides=[stride] * 2, kernel_shape=[kernel] * 2)
        )  # fmt: skip
        nodes.append(helper.make_node("Relu", [name], [f"{name}_r"]))
        return f"{name}_r"

    last = conv("images", 3, 64, 7, 2)
    nodes.append(
        helper.make_node("MaxPool", [last], ["pool"], kernel_shape=[3, 3], strides=[2, 2],
                         pads=[1, 1, 1, 1])
    )  # fmt: skip
    last, channels = "pool", 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        out = width * (4 if bottleneck else 1)
        for block in range(count):
            stride = 2 if stage and not block else 1
            if bottleneck:
                body = conv(conv(last, channels, width, 1), width, width, 3, stride)
                body = conv(body, width, out, 1)
            else:
                body = conv(conv(last, channels, width, 3, stride), width, width, 3)
            shortcut = (
                last if channels == out and stride == 1 else conv(last, channels, out, 1, stride)
            )
            last = f"add{len(nodes)}"
            nodes.append(helper.make_node("Add", [body, shortcut], [last]))
            channels = out
    weights.append(numpy_helper.from_array(np.zeros((1000, channels), np.float32), "fc_w"))
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc_w"], ["logits"], name="fc", transB=1),
    ]
    image = helper.make_tensor_value_info("images", 1, ["batch", 3, 224, 224])
    logits = helper.make_tensor_value_info("logits", 1, ["batch", 1000])
    graph = helper.make_graph(nodes, "resnet", [image], [logits], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
