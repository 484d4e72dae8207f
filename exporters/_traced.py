"""A traced network in operators that have an ONNX form, so that PyTorch need not trace it again.

PyTorch's ONNX exporter decomposes every program by tracing it twice more, with symbolic shapes:
more than half of a conversion. Convolutional networks, with a head for detection or segmentation,
need that only for in-place activations, BatchNorm, pooling and casts. They are rewritten here, and
the decomposition is skipped if all operators are then known to be converted as they are. The graph
is the same either way (`tests/exporters/test_traced.py`). A network with any other operator is left
to PyTorch.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

__all__ = ["in_onnx_operators"]

_aten: Any = torch.ops.aten
# In place -> the same operator with a new result.
_OUT_OF_PLACE = {
    _aten.relu_.default: _aten.relu.default,
    _aten.hardtanh_.default: _aten.hardtanh.default,
    _aten.hardswish_.default: _aten.hardswish.default,
    _aten.silu_.default: _aten.silu.default,
    _aten.add_.Tensor: _aten.add.Tensor,
}
# Their result is always new memory. Views are not, and `dropout` in inference is its own input.
_FRESH = {_aten.conv2d.default, _aten.batch_norm.default, _aten.add.Tensor}
# PyTorch does not decompose these on the way to ONNX, and converts them as they are.
_KNOWN = {
    *_OUT_OF_PLACE.values(),
    _aten._native_batch_norm_legit_no_training.default,
    _aten.abs.default,
    _aten.arange.default,
    _aten.avg_pool2d.default,
    _aten.cat.default,
    _aten.clamp.default,
    _aten.conv2d.default,
    _aten.div.Tensor,
    _aten.dropout.default,
    _aten.exp.default,
    _aten.expand.default,
    _aten.flatten.using_ints,
    _aten.gelu.default,
    _aten.group_norm.default,
    _aten.hardsigmoid.default,
    _aten.layer_norm.default,
    _aten.linear.default,
    _aten.max_pool2d.default,
    _aten.mean.dim,
    _aten.minimum.default,
    _aten.mul.Tensor,
    _aten.neg.default,
    _aten.new_full.default,
    _aten.permute.default,
    _aten.reshape.default,
    _aten.select.int,
    _aten.sigmoid.default,
    _aten.sqrt.default,
    _aten.stack.default,
    _aten.sub.Tensor,
    _aten.sym_size.int,
    _aten.upsample_bilinear2d.vec,
    _aten.upsample_nearest2d.vec,
    _aten.view.default,
    operator.getitem,
}
_TRAINING, _STATISTICS = 5, slice(3, 5)  # arguments of `batch_norm`


def in_onnx_operators(program: ExportedProgram) -> None:
    """Rewrite what has no ONNX form; skip the decomposition if only known operators are left."""
    signature = program.graph_signature  # it names the outputs
    with program.graph_module._set_replace_hook(signature.get_replace_hook()):
        _rewrite(program)
    program.graph_module.recompile()
    if all(map(_is_known, program.graph.nodes)):
        program.run_decompositions = lambda *_: program


def _rewrite(program: ExportedProgram) -> None:
    for node in list(program.graph.nodes):
        if node.target in _OUT_OF_PLACE:
            _out_of_place(node)
        elif node.target is _aten.adaptive_avg_pool2d.default and list(node.args[1]) == [1, 1]:
            _pool_by_mean(node)
        elif node.target is _aten.to.dtype:
            _cast_to_its_own_type(node)
        elif node.target is _aten.clamp.default:
            _bounds_of_one_type(node)
    for node in list(program.graph.nodes):
        if node.target is _aten.batch_norm.default and _in_inference(node):
            _batchnorm_in_inference(program.graph, node)


def _is_known(node: Node) -> bool:
    """Whether PyTorch converts a node as it is."""
    if node.target is _aten.clamp.default and any(isinstance(x, Node) for x in node.args[1:]):
        return False  # a bound that depends on the input's shape
    return node.op != "call_function" or node.target in _KNOWN


def _out_of_place(node: Node) -> None:
    """`relu_` becomes `relu` where nothing else can see the memory it overwrites."""
    arguments: Any = node.args
    overwritten, *others = arguments
    alone = isinstance(overwritten, Node) and len(overwritten.users) == 1
    # In place, the result keeps the type of what is overwritten.
    if alone and overwritten.target in _FRESH and all(_same_type(overwritten, a) for a in others):
        node.target = _OUT_OF_PLACE[node.target]


def _same_type(one: Node, other: Any) -> bool:
    return not isinstance(other, Node) or one.meta["val"].dtype == other.meta["val"].dtype


def _pool_by_mean(node: Node) -> None:
    """Write global average pooling as a mean over H and W.

    PyTorch decomposes it to the same mean followed, for channels-last activations (any ConvNeXt),
    by an `as_strided` that changes no value but becomes nine index-building nodes and a Gather.
    """
    node.target = _aten.mean.dim
    node.args = (node.args[0], [-2, -1], True)


def _cast_to_its_own_type(node: Node) -> None:
    """Remove a cast that changes nothing, and what asserts the type before it."""
    before: Any = node.args[0]
    if before.meta["val"].dtype != node.args[1] or len(node.args) > 2 or node.kwargs:
        return
    node.replace_all_uses_with(before)
    for user in [*before.users]:
        if user is node or user.target is _aten._assert_tensor_metadata.default:
            node.graph.erase_node(user)


def _bounds_of_one_type(node: Node) -> None:
    """`clamp(0.5, 1)` becomes `clamp(0.5, 1.0)`: PyTorch's exporter fails at the former."""
    values, *bounds = node.args
    if any(isinstance(bound, float) for bound in bounds):
        numbers = [float(bound) if isinstance(bound, int) else bound for bound in bounds]
        node.args = (values, *numbers)


def _in_inference(node: Node) -> bool:
    arguments: Any = node.args
    return not arguments[_TRAINING] and None not in arguments[_STATISTICS]


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
