"""Roofline estimates for unavailable devices. Arithmetic from a table, never a measurement.

Each layer takes the longer of its computing time (operations / peak) and its memory time (bytes /
bandwidth) (Williams, Waterman and Patterson, "Roofline", 2009). Pointwise layers and
normalizations are taken as fused into their producers, as TensorRT does. The constants are set once
for all devices; `docs/bench-method.md` states the error against published MLPerf latencies of
ResNet-50.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from pydantic import Field
from rich.console import Group, RenderableType
from rich.text import Text

from hgkd_edge.bench.devices import Device, device_table, find_devices
from hgkd_edge.bench.inputs import make_inputs
from hgkd_edge.bench.models import ModelFile, resolve_models
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import Record
from hgkd_edge.bench.run import result_file
from hgkd_edge.cells import Name, milliseconds, name_table, rate
from hgkd_edge.errors import DeviceError, RunError, reason_of
from hgkd_edge.files import write_json

__all__ = [
    "Estimate",
    "Layer",
    "estimate_models",
    "estimate_one",
    "estimate_to_file",
    "estimate_view",
    "layers_of",
]

# Shares of the peak that a well-built engine reaches. Ordinary cores come closer to their (lower)
# peak than tensor cores, which wait for data.
TENSOR_CORES, ORDINARY_CORES = 0.30, 0.65
BANDWIDTH = 0.70  # share of it
LAYER_US = 3.5  # fixed cost of a kernel

# Fused into the previous layer: no memory traffic. Views move nothing either.
# fmt: off
_FREE = frozenset({
    "Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Erf", "Tanh", "Sqrt",
    "Add", "Mul", "Sub", "Div", "Pow", "BatchNormalization", "Identity", "Dropout", "Cast",
    "QuantizeLinear", "DequantizeLinear", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Shape",
    "Constant", "ConstantOfShape", "Gather", "Concat", "Slice", "Expand", "Range",
})
# fmt: on
_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}


class Estimate(Record):
    """A roofline figure, at the device's highest standard clocks (not "super"), without copies.

    It is arithmetic from a device table, not a measurement.
    """

    kind: Literal["estimate"] = "estimate"
    model: str
    device: str
    precision: str
    batch: int
    estimated_ms: float
    estimated_throughput_ips: float
    compute_bound_percent: float
    peak_tflops: float
    share_of_peak: float
    unconfirmed: list[str]


class EstimateFile(Record):
    """The content of `bench-estimate.json`."""

    schema_name: Literal["hgkd-edge.bench-estimate"] = Field(alias="schema")
    version: Literal[1] = 1
    estimates: list[Estimate]


@dataclass(frozen=True)
class Layer:
    """One layer that costs time: operations (2 per multiply-add) and elements moved."""

    operations: float
    elements: int


def estimate_to_file(options: BenchOptions, names: Sequence[str]) -> tuple[Path, EstimateFile]:
    """Write estimates to a separate file: they must never be mixed with measurements.

    Args:
        options: Models, precisions, batches, and where the file goes.
        names: Devices of the table, or families such as `orin-nano`; empty takes all.

    Raises:
        DeviceError: A device that is not in the table, or a precision without figures.
        RunError: No model, or one whose shapes cannot be inferred.
    """
    if unknown := set(options.precisions) - set(_BYTES):
        raise DeviceError(
            f"--estimate has no figures for {min(unknown)}", hint=f"one of {', '.join(_BYTES)}"
        )
    found = estimate_models(
        resolve_models(options.models),
        [device for name in names for device in find_devices(name)] or device_table().devices,
        precisions=options.precisions,
        batches=options.batches,
    )
    file = result_file(options, "bench-estimate.json")
    content = EstimateFile(schema="hgkd-edge.bench-estimate", estimates=found)
    write_json(file, content.model_dump(mode="json", by_alias=True))
    return file, content


def estimate_models(
    models: Sequence[ModelFile],
    devices: Sequence[Device],
    *,
    precisions: Sequence[str] = (),
    batches: Sequence[int] = (1,),
) -> list[Estimate]:
    """Every ONNX model on every device, at each batch size and precision (default: the file's)."""
    return [
        estimate_one(model.label, layers, device, precision=precision, batch=batch)
        for model in models
        for batch in batches
        for layers in [layers_of(model, batch=batch)]
        for device in devices
        for precision in precisions or (model.precision,)
    ]


def estimate_one(
    label: str, layers: Sequence[Layer], device: Device, *, precision: str, batch: int
) -> Estimate:
    """One estimate.

    A device without INT8 units computes INT8 at its FP16 rate; FP32 runs at half of FP16 (TF32 on
    Orin and Thor, plain FP32 before).
    """
    peaks = {
        "fp32": device.fp16_tflops / 2,
        "fp16": device.fp16_tflops,
        "int8": device.int8_tops or device.fp16_tflops,
    }
    share = TENSOR_CORES if float(device.compute_capability) >= 7 else ORDINARY_CORES
    per_second = peaks[precision] * 1e12 * share
    elements_per_second = device.bandwidth_gbs * 1e9 * BANDWIDTH / _BYTES[precision]
    times = [
        (layer.operations / per_second, layer.elements / elements_per_second) for layer in layers
    ]
    seconds = sum(max(pair) + LAYER_US * 1e-6 for pair in times)
    bound = sum(computing for computing, moving in times if computing >= moving)
    figures = ("gpu_mhz", "bandwidth_gbs", "fp16_tflops", "int8_tops")
    return Estimate(
        model=label,
        device=device.id,
        precision=precision,
        batch=batch,
        estimated_ms=seconds * 1000,
        estimated_throughput_ips=batch / seconds,
        compute_bound_percent=100 * bound / seconds,
        peak_tflops=peaks[precision],
        share_of_peak=share,
        unconfirmed=[key for key in figures if key in device.unconfirmed],
    )


def estimate_view(estimates: Sequence[Estimate]) -> RenderableType:
    """The table of estimates; the title, every row's last column and the note say "estimate"."""
    table = name_table(["device", "model"], "prec", "B", "ms", "img/s", "compute", "kind")
    for one in estimates:
        table.add_row(
            Name(one.device + ("?" if one.unconfirmed else "")),
            Name(one.model),
            one.precision,
            str(one.batch),
            milliseconds(one.estimated_ms),
            rate(one.estimated_throughput_ips),
            f"{one.compute_bound_percent:.0f}%",
            "estimate",
        )
    shares = sorted({f"{one.share_of_peak:.0%}" for one in estimates})
    note = (
        f"Nothing was measured. Roofline per layer: {' or '.join(shares)} of the peak, "
        f"{BANDWIDTH:.0%} of the bandwidth, {LAYER_US:g} us per "
        "layer, full standard clocks, no copies. 'compute' is the share of time bound by "
        "computing. ? = a figure of the device is unconfirmed. Error against published ResNet-50 "
        "latencies: docs/bench-method.md"
    )
    return Group(
        Text("ESTIMATE (roofline), not a measurement", style="bold yellow"),
        table,
        Text(note, style="dim"),
    )


def layers_of(model: ModelFile, *, batch: int) -> list[Layer]:
    """The layers that cost time, from the ONNX graph with shapes inferred at this batch size.

    Raises:
        RunError: Shapes cannot be inferred.
    """
    graph = _inferred(model, batch)
    shapes = _shapes(graph)
    costly = [node for node in graph.node if node.op_type not in _FREE]
    found = [layer for node in costly if (layer := _layer(node, shapes))]
    if not found:
        raise RunError(
            f"'{model.path}' holds no layer that costs time", hint="check that it is the right file"
        )
    return found


def _inferred(model: ModelFile, batch: int) -> onnx.GraphProto:
    """The graph with all shapes that can be inferred."""
    loaded = onnx.load(str(model.path))
    feeds, _records = make_inputs(model, batch=batch)
    for value in loaded.graph.input:
        if value.name in feeds:
            axes = value.type.tensor_type.shape.dim
            for axis, size in zip(axes, feeds[value.name].shape, strict=True):
                axis.dim_value = size
    # Sizes stored under a symbolic batch would override the inferred ones.
    del loaded.graph.value_info[:]
    for value in loaded.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        return onnx.shape_inference.infer_shapes(loaded, data_prop=True).graph
    except Exception as error:  # onnx raises bare C++ exceptions
        raise RunError(
            f"'{model.path}': shapes cannot be inferred ({reason_of(error)})",
            hint="export the model again: hgkd-edge export --onnx",
        ) from error


def _shapes(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """Every tensor whose shape is known."""
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.HasField("shape") and all(size > 0 for size in sizes):
            shapes.setdefault(value.name, sizes)
    return shapes


def _layer(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> Layer | None:
    """The cost of a node; None if the shape of its output or of a main input is unknown."""
    inputs = [name for name in node.input if name]
    output = shapes.get(node.output[0])
    if output is None or any(name not in shapes for name in inputs[:2]):
        return None
    sizes = {name: math.prod(shapes[name]) for name in inputs if name in shapes}
    operations = 0.0
    if node.op_type in ("Conv", "ConvTranspose"):
        points = math.prod(output) if node.op_type == "Conv" else sizes[inputs[0]]
        operations = 2.0 * points * math.prod(shapes[inputs[1]][1:])
    elif node.op_type in ("Gemm", "MatMul"):
        transposed = any(one.name == "transA" and one.i for one in node.attribute)
        operations = 2.0 * math.prod(output) * shapes[inputs[0]][0 if transposed else -1]
    return Layer(operations, sum(sizes.values()) + math.prod(output))
