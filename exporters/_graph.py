"""Nodes of an ONNX graph: their names, and their order.

Nodes are named after the PyTorch modules they came from, as `layer1.0.conv1/Conv`. The names stay
with the network through TensorRT and OpenVINO, so that a profile, a parser error or a failed
verification points at a line of the model.
"""

from __future__ import annotations

import ast
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["WEIGHTED", "module_of", "name_after_modules", "sort_nodes"]

_SCOPES = "pkg.torch.onnx.name_scopes"
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # operators that have weights


def name_after_modules(model: onnx.ModelProto) -> None:
    """Rename every node in place; needs the metadata that PyTorch's exporter leaves on nodes."""
    weights = {tensor.name for tensor in model.graph.initializer}
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        module = _owner_of_weight(node, weights) or _innermost_module(node)
        name = f"{module}/{node.op_type}" if module else node.op_type
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"


def module_of(node_name: str) -> str:
    """`layer1.0.conv1/Conv` -> `layer1.0.conv1`; a name without a module is returned whole."""
    return node_name.rsplit("/", 1)[0]


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put every node after the nodes it reads, as ONNX requires; otherwise keep the order.

    For graphs with nodes appended at the end, so few nodes have to move.
    """
    makers = {output: index for index, node in enumerate(graph.node) for output in node.output}
    ordered: list[int] = []
    placed: set[int] = set()

    def place(index: int) -> None:
        if index in placed:
            return
        placed.add(index)
        for name in graph.node[index].input:
            if name in makers:
                place(makers[name])
        ordered.append(index)

    for index in range(len(graph.node)):
        place(index)
    copies = [type(graph.node[i]).FromString(graph.node[i].SerializeToString()) for i in ordered]
    del graph.node[:]
    graph.node.extend(copies)


def _owner_of_weight(node: onnx.NodeProto, weights: set[str]) -> str:
    # A batch norm folded into its convolution leaves the norm's scope on the node. The weight still
    # identifies the convolution. (Other layers may share equal weights.)
    if node.op_type in WEIGHTED:
        for name in node.input[1:2]:
            if name in weights and name.endswith(".weight"):
                return name.removesuffix(".weight")
    return ""


def _innermost_module(node: onnx.NodeProto) -> str:
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            # ['', 'layer1', 'layer1.0', 'layer1.0.act1', 'relu_1']: the last is the operation.
            scopes = ast.literal_eval(entry.value)[:-1]
            return scopes[-1] if scopes and not scopes[-1].startswith("_empty") else ""
    return ""
