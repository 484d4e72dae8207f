"""Roofline estimates for unavailable devices. Arithmetic from a table, never a measurement.

Each layer takes the longer of its computing time (operations / peak) and its memory time (bytes /
bandwidth) (Williams, Waterman and Patterson, "Roofline", 2009). Pointwise layers and
normalizations are taken as fused into their producers, as TensorRT does. `EFFICIENCY` and
`LAYER_US` are set once for all devices; `docs/bench.md` states the error against published MLPerf
latencies of ResNet-50.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from hgkd_edge.bench.devices import Device, find_devices, load_devices
from hgkd_edge.bench.inputs import make_inputs
from hgkd_edge.bench.models import ModelFile, resolve_models
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import Record
from hgkd_edge.bench.run import result_file
from hgkd_edge.bench.tables import Name, milliseconds, name_table, rate
from hgkd_edge.errors import RunError, reason_of
from hgkd_edge.rundir import write_json

__all__ = [
    "Estimate",
    "Layer",
    "estimate_models",
    "estimate_one",
    "estimate_record",
    "estimate_to_file",
    "estimate_view",
    "layers_of",
]

# Shares of peak (with and without tensor cores) and of bandwidth that a well-built engine reaches,
# and the fixed cost per kernel.
EFFICIENCY = {"compute": 0.30, "compute_no_tensor_cores": 0.65, "bandwidth": 0.70}
LAYER_US = 3.5

_HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
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
    """A roofline figure. It is arithmetic from a device table, not a measurement."""

    kind: Literal["estimate"] = "estimate"
    model: str
    device: str
    mode: str
    precision: str
    batch: int
    estimated_ms: float
    estimated_throughput_ips: float
    compute_bound_percent: float
    gflops: float
    traffic_mb: float
    assumptions: dict[str, Any]
    unconfirmed: list[str]


@dataclass(frozen=True)
class Layer:
    """One layer that costs time: operations (2 per multiply-add) and elements moved."""

    name: str
    operations: float
    weights: int
    activations: int


def estimate_models(
    models: Sequence[ModelFile],
    devices: Sequence[Device],
    *,
    precisions: Sequence[str] = (),
    batches: Sequence[int] = (1,),
) -> list[Estimate]:
    """Estimates of every model on every device, at each precision and batch size.

    Args:
        models: ONNX files.
        devices: From the table.
        precisions: Which to assume; empty takes the file's own.
        batches: Batch sizes.
    """
    found = []
    for model in models:
        for batch in batches:
            layers = layers_of(model, batch=batch)
            for device in devices:
                for precision in precisions or (model.precision,):
                    found.append(
                        estimate_one(model.label, layers, device, precision=precision, batch=batch)
                    )
    return found


def estimate_to_file(options: BenchOptions, names: Sequence[str]) -> tuple[Path, list[Estimate]]:
    """Write estimates to a separate file: they must never be mixed with measurements.

    Args:
        options: Models, precisions, batches, and where the file goes.
        names: Devices of the table, or families such as `orin-nano`; empty takes all.

    Raises:
        DeviceError: A device that is not in the table.
        RunError: No model, or one whose shapes cannot be inferred.
    """
    found = estimate_models(
        resolve_models(options.models),
        [device for name in names for device in find_devices(name)] or load_devices(),
        precisions=options.precisions,
        batches=options.batches,
    )
    file = result_file(options, "bench-estimate.json")
    write_json(file, estimate_record(found))
    return file, found


def estimate_record(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """The content of `bench-estimate.json`."""
    return {
        "schema": "hgkd-edge.bench-estimate",
        "version": 1,
        "estimates": [one.model_dump(mode="json") for one in estimates],
    }


def estimate_one(
    label: str, layers: Sequence[Layer], device: Device, *, precision: str, batch: int
) -> Estimate:
    """One estimate, at the device's highest standard clocks (not "super").

    A device without INT8 units computes INT8 at its FP16 rate; FP32 runs at half of FP16 (TF32 on
    Orin and Thor, plain FP32 before).
    """
    size = _BYTES[precision]
    share = _share_of_peak(device)
    peak = _peak_tflops(device, precision) * 1e12 * share
    bandwidth = device.bandwidth_gbs * 1e9 * EFFICIENCY["bandwidth"]
    seconds = compute_seconds = traffic = 0.0
    for layer in layers:
        moved = (layer.weights + layer.activations) * size
        computing, moving = layer.operations / peak, moved / bandwidth
        seconds += max(computing, moving) + LAYER_US * 1e-6
        compute_seconds += computing if computing >= moving else 0.0
        traffic += moved
    unconfirmed: list[str] = [
        key
        for key in ("gpu_mhz", "bandwidth_gbs", "fp16_tflops", "int8_tops")
        if key in device.unconfirmed
    ]
    return Estimate(
        model=label,
        device=device.id,
        mode="MAXN, standard clocks",
        precision=precision,
        batch=batch,
        estimated_ms=seconds * 1000,
        estimated_throughput_ips=batch / seconds,
        compute_bound_percent=100 * compute_seconds / seconds,
        gflops=sum(layer.operations for layer in layers) / 1e9,
        traffic_mb=traffic / 2**20,
        assumptions={
            "peak_tflops": _peak_tflops(device, precision),
            "bandwidth_gbs": device.bandwidth_gbs,
            "share_of_peak": share,
            "share_of_bandwidth": EFFICIENCY["bandwidth"],
            "us_per_layer": LAYER_US,
            "layers": len(layers),
            "fused": "pointwise layers have no separate cost",
            "copies": "not included",
        },
        unconfirmed=unconfirmed,
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
    given = estimates[0].assumptions
    shares = sorted({f"{one.assumptions['share_of_peak']:.0%}" for one in estimates})
    note = (
        f"Nothing was measured. Roofline per layer: {' or '.join(shares)} of the peak, "
        f"{given['share_of_bandwidth']:.0%} of the bandwidth, {given['us_per_layer']:g} us per "
        "layer, full standard clocks, no copies. 'compute' is the share of time bound by "
        "computing. ? = a figure of the device is unconfirmed. Error against published ResNet-50 "
        "latencies: docs/bench.md"
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
    import onnx

    graph_model = onnx.load(str(model.path))
    feeds, _records = make_inputs(model, batch=batch)
    for value in graph_model.graph.input:
        if value.name in feeds:
            for axis, size in zip(
                value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=True
            ):
                axis.dim_value = size
    # Sizes stored under a symbolic batch would override the inferred ones.
    del graph_model.graph.value_info[:]
    for value in graph_model.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(graph_model, data_prop=True)
    except Exception as error:  # onnx raises bare C++ exceptions
        raise RunError(
            f"'{model.path}': shapes cannot be inferred ({reason_of(error)})",
            hint="export the model again: hgkd-edge export --onnx",
        ) from error
    shapes = _shapes(inferred.graph)
    weights = {tensor.name for tensor in inferred.graph.initializer}
    origin = _through_quantizers(inferred.graph)
    found = []
    for node in inferred.graph.node:
        if node.op_type in _FREE:
            continue
        layer = _layer(node, shapes, weights, origin)
        if layer is not None:
            found.append(layer)
    if not found:
        raise RunError(
            f"'{model.path}' holds no layer that costs time", hint="check that it is the right file"
        )
    return found


def _layer(
    node: Any, shapes: dict[str, list[int]], weights: set[str], origin: dict[str, str]
) -> Layer | None:
    output = shapes.get(node.output[0])
    inputs = [name for name in node.input if name]
    if output is None or any(origin.get(name, name) not in shapes for name in inputs[:2]):
        return None
    sizes = {
        name: _count(shapes[origin.get(name, name)])
        for name in inputs
        if origin.get(name, name) in shapes
    }
    held = sum(size for name, size in sizes.items() if origin.get(name, name) in weights)
    moved = sum(sizes.values()) - held + _count(output)
    operations = 0.0
    if node.op_type in _HEAVY:
        kernel = shapes[origin.get(inputs[1], inputs[1])]
        if node.op_type == "Conv":
            operations = 2.0 * _count(output) * _count(kernel[1:])
        elif node.op_type == "ConvTranspose":
            operations = 2.0 * sizes[inputs[0]] * _count(kernel[1:])
        else:
            inner = shapes[origin.get(inputs[0], inputs[0])][-1]
            transposed = any(one.name == "transA" and one.i for one in node.attribute)
            operations = 2.0 * _count(output) * (shapes[inputs[0]][0] if transposed else inner)
    return Layer(node.name or node.output[0], operations, held, moved)


def _shapes(graph: Any) -> dict[str, list[int]]:
    """Every tensor whose shape is known."""
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            sizes = [axis.dim_value for axis in kind.shape.dim]
            if all(size > 0 for size in sizes):
                shapes.setdefault(value.name, sizes)
    return shapes


def _through_quantizers(graph: Any) -> dict[str, str]:
    """Tensor -> the tensor it is a (de)quantized copy of, so that weights are seen as weights."""
    origin: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Identity", "Cast"):
            origin[node.output[0]] = origin.get(node.input[0], node.input[0])
    return origin


def _peak_tflops(device: Device, precision: str) -> float:
    if precision == "int8":
        return device.int8_tops or device.fp16_tflops
    return device.fp16_tflops if precision == "fp16" else device.fp16_tflops / 2


def _share_of_peak(device: Device) -> float:
    """Ordinary cores come closer to their (lower) peak than tensor cores, which wait for data."""
    tensor_cores = float(device.compute_capability) >= 7
    return EFFICIENCY["compute" if tensor_cores else "compute_no_tensor_cores"]


def _count(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64)) if len(shape) else 1
