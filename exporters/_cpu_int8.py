"""Graph rewrites that make ONNX Runtime's INT8 kernels worthwhile on a CPU.

Both rules come from measurements (`python -m benchmarks.export_latency`). A mean over H and W has
no integer kernel; the same mean written as GlobalAveragePool has one and keeps the layout of the
convolutions. An Add or Mul with a constant (a bias, the inside of a GELU, a layer scale) is cheaper
fused in float than rounded to integers before and after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["float_arithmetic", "pool_as_operator"]


def pool_as_operator(model: onnx.ModelProto) -> None:
    """Write every mean over H and W that keeps its axes as GlobalAveragePool, in place."""
    import onnx

    for node in model.graph.node:
        if node.op_type != "ReduceMean":
            continue
        values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        over_image = sorted(values.get("axes", ())) in ([-2, -1], [2, 3])
        if over_image and values.get("keepdims", 1) and _rank(model, node.input[0]) == 4:
            node.op_type = "GlobalAveragePool"
            del node.attribute[:]


def float_arithmetic(model: onnx.ModelProto) -> list[str]:
    """Names of the Add and Mul nodes to keep in float: with a constant, or after such a node."""
    graph = model.graph
    constant = {tensor.name for tensor in graph.initializer}
    constant |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    left: list[str] = []
    behind: set[str] = set()
    for node in graph.node:
        if node.op_type in ("Add", "Mul") and (constant | behind) & {*node.input}:
            left.append(node.name)
            behind |= {*node.output}
    return left


def _rank(model: onnx.ModelProto, tensor: str) -> int | None:
    for value in (*model.graph.value_info, *model.graph.input):
        if value.name == tensor:
            return len(value.type.tensor_type.shape.dim)
    return None
