"""PyTorch's conversion to ONNX, once for equal networks. It takes seconds of many tests."""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from exporters.onnx_export import _convert
from hgkd_edge.files import atomic_write


class ConvertOnce:
    """Stands for `exporters.onnx_export._convert`; keeps its results in a folder.

    The key is the whole pickled network with the arguments: anything that differs is converted
    again. Whatever has no pickle (classes inside of tests) is always converted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self,
        model: nn.Module,
        example: torch.Tensor,
        free: Mapping[int, str],
        *,
        output_names: list[str],
    ) -> onnx.ModelProto:
        arguments = (model, tuple(example.shape), dict(free), output_names)
        file = self._file(arguments)
        if file is not None and file.is_file():
            return onnx.load_model_from_string(file.read_bytes())
        _look_up_operators_once()
        _compare_operators_first()
        proto = _convert(model, example, free, output_names=output_names)
        if file is not None:
            with atomic_write(file) as temporary:
                temporary.write_bytes(proto.SerializeToString())
        return proto

    def _file(self, arguments: Any) -> Path | None:
        try:
            content = io.BytesIO()
            pickler = _Pickler(content)
            pickler.fast = True  # without references, which depend on what is the same object
            pickler.dump(arguments)
            return self.folder / hashlib.sha256(content.getvalue()).hexdigest()
        except (pickle.PicklingError, AttributeError, TypeError, ValueError):
            return None


@functools.cache
def _look_up_operators_once() -> None:
    """PyTorch collects its operators and their ONNX functions in every conversion: a second."""
    from torch._export import utils
    from torch.onnx._internal._lazy_import import onnxscript_apis
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    onnxscript_apis.get_torchlib_ops = functools.cache(onnxscript_apis.get_torchlib_ops)
    of_namespace = functools.cache(utils._collect_all_valid_cia_ops_for_namespace)
    utils._collect_all_valid_cia_ops_for_namespace = of_namespace
    registry = functools.cache(ONNXRegistry.from_torchlib)
    ONNXRegistry.from_torchlib = staticmethod(registry)  # type: ignore[assignment,method-assign]


@functools.cache
def _compare_operators_first() -> None:
    """onnxscript tries every rule at every node, some by a pass over the graph: a quarter."""
    from onnxscript.rewriter._basics import MatchResult
    from onnxscript.rewriter._matcher import SimplePatternMatcher

    match = SimplePatternMatcher.match

    def of_same_operator(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        if not self.pattern.output_nodes[0].op.matches(node.op_type):
            return MatchResult().fail("another operator")
        return match(self, model, graph, node, **options)

    SimplePatternMatcher.match = of_same_operator  # type: ignore[method-assign]


class _Pickler(pickle.Pickler):
    """Ignores what differs between equal networks: addresses of tensors, numbers of hooks."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.Tensor):
            values = obj.detach().contiguous().numpy().tobytes()
            return bytes, (values, str(obj.dtype), tuple(obj.shape), obj.stride())
        if isinstance(obj, OrderedDict) and all(isinstance(key, int) for key in obj):
            return list, (list(obj.values()),)
        return NotImplemented
