"""Residual sums in a TensorRT INT8 graph.

TensorRT runs `conv -> add -> relu` as one INT8 kernel when the *other* operand of the sum arrives
quantized. A skip branch is usually the input of a quantized layer too (the first convolution of the
block): the sum then reads that layer's dequantized tensor, so both share one scale and one Q/DQ
pair. A projection (downsample) branch gets its own pair. The convolution's own output gets no pair:
it would break the fusion. Sums whose layer was kept in float stay in float.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._graph import WEIGHTED
from .calibrate import Calibration

if TYPE_CHECKING:
    import onnx

__all__ = ["share_residual_scales"]

_LEVELS = 127  # symmetric int8


def share_residual_scales(model: onnx.ModelProto, calibration: Calibration) -> None:
    """Quantize the skip branch of every quantized layer's sum in place.

    New nodes are appended: the graph has to be sorted afterwards.
    """
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    weights = {tensor.name for tensor in graph.initializer}
    dequantized = _dequantized_tensors(graph, makers)
    if not dequantized:
        return
    sums = [n for n in graph.node if n.op_type == "Add" and not weights & {*n.input}]
    for node in sums:
        skip = _skip_operand(node, makers, dequantized)
        tensor = node.input[skip]
        if not _is_of_quantized_layer(node.input[1 - skip], makers):
            continue
        if tensor not in dequantized:
            if tensor not in calibration:
                continue
            pair = _quantize_dequantize(graph, tensor, calibration.largest(tensor))
            graph.node.extend(pair)
            dequantized[tensor] = pair[1].output[0]
        node.input[skip] = dequantized[tensor]


def _dequantized_tensors(
    graph: onnx.GraphProto, makers: dict[str, onnx.NodeProto]
) -> dict[str, str]:
    """Float activation -> its value after quantize and dequantize, where there is such a pair."""
    weights = {tensor.name for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        quantize = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        if quantize.input[0] not in weights:
            found[quantize.input[0]] = node.output[0]
    return found


def _skip_operand(
    node: onnx.NodeProto, makers: dict[str, onnx.NodeProto], dequantized: dict[str, str]
) -> int:
    """Which operand is the skip branch: the one already quantized, else the later-listed one."""
    for index in (1, 0):
        maker = makers.get(node.input[index])
        if node.input[index] in dequantized and (maker is None or maker.op_type != "Conv"):
            return index
    for index in (1, 0):
        if node.input[index] in dequantized:
            return index
    return 1


def _is_of_quantized_layer(tensor: str, makers: dict[str, onnx.NodeProto]) -> bool:
    """Whether the layer with weights that it comes from, through a layer scale for example, reads
    a dequantized tensor."""
    node = makers.get(tensor)
    while node is not None and node.op_type not in WEIGHTED:
        node = next((makers[name] for name in node.input if name in makers), None)
    maker = makers.get(node.input[0]) if node is not None else None
    return maker is not None and maker.op_type == "DequantizeLinear"


def _quantize_dequantize(
    graph: onnx.GraphProto, tensor: str, largest: float
) -> list[onnx.NodeProto]:
    import onnx

    scale, zero = f"{tensor}_residual_scale", f"{tensor}_residual_zero_point"
    step = np.array(max(largest, 1e-8) / _LEVELS, np.float32)
    graph.initializer.append(onnx.numpy_helper.from_array(step, scale))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.int8), zero))
    integer, real = f"{tensor}_residual_quantized", f"{tensor}_residual_dequantized"
    return [
        onnx.helper.make_node("QuantizeLinear", [tensor, scale, zero], [integer], name=integer),
        onnx.helper.make_node("DequantizeLinear", [integer, scale, zero], [real], name=real),
    ]
