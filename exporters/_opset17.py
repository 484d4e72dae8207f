"""Opset 18 -> 17, for the few operators whose form changed.

PyTorch's exporter writes opset 18 and up; TensorRT 8.5 and 8.6 (JetPack 5 and 6.0) read up to 17.
Newer files are not always rejected: an opset-18 reduction carries its axes as an input, which those
releases ignore, so the engine builds without an error and computes wrong values (NVIDIA/TensorRT
issue 3467). `onnx.version_converter` cannot convert reductions (it leaves `noop_with_empty_axes`
behind), so this module does. Newer releases read opset 17 as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["OPSET", "lower_to_opset17"]

OPSET = 17
_IR_VERSION = 8  # the file format that came with opset 17
# Same operator, same attributes, in both opsets: everything except these.
_REDUCTIONS = {
    f"Reduce{kind}"
    for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
}
_ONLY_IN_18 = {
    *("BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "CenterCropPad", "Col2Im"),
    *("GroupNormalization", "Mish", "OptionalGetElement", "OptionalHasElement"),
}
_NEW_ATTRIBUTES = {
    "Resize": {"antialias", "axes", "keep_aspect_ratio_policy"},
    "Split": {"num_outputs"},
}


def lower_to_opset17(model: onnx.ModelProto) -> list[str]:
    """Rewrite an opset-18 model in place.

    Returns:
        The nodes that have no opset-17 form; when there are any, the model is not changed.
    """
    constants = _integer_constants(model)
    blocked = [
        f"{node.op_type} '{node.name}'" for node in model.graph.node if _blocks(node, constants)
    ]
    if blocked:
        return blocked
    for node in model.graph.node:
        if node.op_type in _REDUCTIONS:
            _axes_to_attribute(node, constants)
        elif node.op_type == "Resize":
            _drop_defaults(node, _NEW_ATTRIBUTES["Resize"])
        elif node.op_type == "Split":
            _drop_defaults(node, _NEW_ATTRIBUTES["Split"])
    _drop_unused_constants(model)
    next(o for o in model.opset_import if o.domain == "").version = OPSET
    model.ir_version = _IR_VERSION
    return []


def _blocks(node: onnx.NodeProto, constants: dict[str, list[int]]) -> bool:
    if node.op_type in _ONLY_IN_18:
        return True
    if node.op_type in _REDUCTIONS and len(node.input) > 1 and node.input[1]:
        return node.input[1] not in constants  # axes known only at run time
    if node.op_type == "Pad":
        return len(node.input) > 3 and bool(node.input[3])
    if node.op_type == "Split":
        # Opset 17 splits evenly by default; an uneven split needs its sizes.
        return len(node.input) < 2 and any(a.name == "num_outputs" for a in node.attribute)
    if node.op_type == "Resize":
        return any(a.name in _NEW_ATTRIBUTES["Resize"] and _is_set(a) for a in node.attribute)
    return False


def _is_set(attribute: onnx.AttributeProto) -> bool:
    return bool(attribute.i or attribute.ints or attribute.s not in (b"", b"stretch"))


def _axes_to_attribute(node: onnx.NodeProto, constants: dict[str, list[int]]) -> None:
    import onnx

    axes = constants[node.input[1]] if len(node.input) > 1 and node.input[1] else []
    _drop_defaults(node, {"noop_with_empty_axes"})
    del node.input[1:]
    if axes:
        node.attribute.append(onnx.helper.make_attribute("axes", axes))


def _drop_defaults(node: onnx.NodeProto, names: set[str]) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)


def _integer_constants(model: onnx.ModelProto) -> dict[str, list[int]]:
    import onnx

    found = {
        tensor.name: onnx.numpy_helper.to_array(tensor).reshape(-1).tolist()
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT64
    }
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value" and attribute.t.data_type == onnx.TensorProto.INT64:
                values = onnx.numpy_helper.to_array(attribute.t)
                found[node.output[0]] = values.reshape(-1).tolist()
    return found


def _drop_unused_constants(model: onnx.ModelProto) -> None:
    used = set(_all_inputs(model.graph)) | {output.name for output in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _all_inputs(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            yield from _all_inputs(attribute.g)
