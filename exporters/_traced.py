"""A traced network in operators that have an ONNX form, so that PyTorch need not trace it again.

PyTorch's ONNX exporter decomposes every program by tracing it twice more, with symbolic shapes:
more than half of a conversion. Convolutional networks need that for three kinds of operators only:
in-place activations, BatchNorm and pooling. They are rewritten here, and the decomposition is
skipped if nothing is left for it. The graph is the same either way
(`tests/exporters/test_traced.py`).
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

__all__ = ["in_onnx_operators"]

_aten = torch.ops.aten
# Their result is always new memory. Views are not, and `dropout` in inference is its own input.
_FRESH = {_aten.conv2d.default, _aten.batch_norm.default, _aten.add.Tensor, _aten.linear.default}
_TRAINING = 5  # an argument of `batch_norm`


def in_onnx_operators(program: ExportedProgram) -> None:
    """Rewrite what has no ONNX form, and skip the decomposition if nothing else is left for it."""
    for node in list(program.graph.nodes):
        if _mutates(node):
            _out_of_place(node)
        elif node.target is _aten.adaptive_avg_pool2d.default and list(node.args[1]) == [1, 1]:
            _pool_by_mean(node)
    for node in list(program.graph.nodes):
        if node.target is _aten.batch_norm.default and not node.args[_TRAINING]:
            _batchnorm_in_inference(program.graph, node)
    program.graph_module.recompile()
    _decompose_if_needed(program)


def _mutates(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _out_of_place(node: Node) -> None:
    """`relu_` becomes `relu` where nothing else can see the memory it overwrites."""
    overload: Any = node.target
    overwritten = node.args[0]
    if not isinstance(overwritten, Node) or len(overwritten.users) > 1:
        return
    name = overload._schema.name.removeprefix("aten::").removesuffix("_")
    same = getattr(getattr(_aten, name, None), overload._overloadname, None)
    if overwritten.target in _FRESH and same is not None:
        node.target = same


def _pool_by_mean(node: Node) -> None:
    """Write global average pooling as a mean over H and W.

    PyTorch decomposes it to the same mean followed, for channels-last activations (any ConvNeXt),
    by an `as_strided` that changes no value but becomes nine index-building nodes and a Gather.
    """
    node.target = _aten.mean.dim
    node.args = (node.args[0], [-2, -1], True)


def _batchnorm_in_inference(graph: Graph, node: Node) -> None:
    """The first result of the operator to which PyTorch decomposes it."""
    image, weight, bias, mean, var, _, momentum, eps = node.args[:8]
    arguments = (image, weight, bias, mean, var, momentum, eps)
    value = node.meta["val"]
    with value.fake_mode:
        unused = value.new_empty(0)  # the batch's mean and deviation
    with graph.inserting_before(node):
        three = graph.call_function(_aten._native_batch_norm_legit_no_training.default, arguments)
        first = graph.call_function(operator.getitem, (three, 0))
    three.meta = {**node.meta, "val": (value, unused, unused)}
    first.meta = dict(node.meta)
    node.replace_all_uses_with(first)
    graph.erase_node(node)


def _decompose_if_needed(program: ExportedProgram) -> None:
    decompose = program.run_decompositions

    def run_decompositions(table: dict[Any, Any]) -> ExportedProgram:
        nodes = program.graph.nodes
        needed = any(_mutates(node) or node.target in table for node in nodes)
        return decompose(table) if needed else program

    program.run_decompositions = run_decompositions
