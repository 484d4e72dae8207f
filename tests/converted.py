"""PyTorch's conversion to ONNX, once for equal networks. It takes seconds of many tests."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
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
        with quick_conversion():
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


@contextlib.contextmanager
def quick_conversion() -> Iterator[None]:
    """Speed up conversions without a change to their results.

    PyTorch's tables of operators are made once instead of in every conversion. onnxscript tries
    every rule at every node, some by a pass over the whole graph; rules for another operator than
    the node's are passed over.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, function in _quick().items():
            patch.setattr(name, function)
        yield


@functools.cache
def _quick() -> dict[str, Any]:
    from onnxscript.rewriter._basics import MatchResult
    from onnxscript.rewriter._matcher import SimplePatternMatcher
    from torch._export import utils
    from torch.onnx._internal._lazy_import import onnxscript_apis
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    collect, match = utils._collect_all_valid_cia_ops, SimplePatternMatcher.match
    collected: dict[int, Any] = {}

    def collect_once() -> Any:
        known = len(torch._C._dispatch_get_all_op_names())
        if known not in collected:
            collected[known] = collect()
        return collected[known]

    def match_operator_first(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        if not self.pattern.output_nodes[0].op.matches(node.op_type):
            return MatchResult().fail("another operator")
        return match(self, model, graph, node, **options)

    registration = "torch.onnx._internal.exporter._registration"
    get_ops = functools.cache(onnxscript_apis.get_torchlib_ops)
    make_registry = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
    return {
        "torch.onnx._internal._lazy_import.onnxscript_apis.get_torchlib_ops": get_ops,
        "torch.export.exported_program._collect_all_valid_cia_ops": collect_once,
        "torch.export.decomp_utils._collect_all_valid_cia_ops": collect_once,
        f"{registration}.ONNXRegistry.from_torchlib": make_registry,
        "onnxscript.rewriter._matcher.SimplePatternMatcher.match": match_operator_first,
    }


class _Pickler(pickle.Pickler):
    """Ignores what differs between equal networks: addresses of tensors, numbers of hooks."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.Tensor):
            values = obj.detach().contiguous().numpy().tobytes()
            return bytes, (values, str(obj.dtype), tuple(obj.shape), obj.stride())
        if isinstance(obj, OrderedDict) and all(isinstance(key, int) for key in obj):
            return list, (list(obj.values()),)
        return NotImplemented
