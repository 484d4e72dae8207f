"""Find the first layer of an ONNX file whose values differ from the original.

Against PyTorch: the values of every operation of the model are recorded in one forward pass, and
every intermediate tensor of the ONNX graph is matched with them *by value*. Names and fused layers
therefore do not matter: a convolution with a folded batch norm matches the norm's output. A node is
correct when its output is found, or that of a node a few steps after it: the exporter writes one
PyTorch operation, such as a GELU, as several nodes whose temporaries PyTorch does not have. The
error starts at the first node that is not correct.

Against another ONNX file (the fp32 one a quantized file was made from): conversions keep tensor
names, so tensors are compared by name, and the first one whose error exceeds the bound is named.
An OpenVINO IR is compared with its ONNX file in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._graph import module_of
from ._intermediates import intermediate_values
from .onnx_info import read_onnx

if TYPE_CHECKING:
    import onnx
    from torch import nn

__all__ = ["Departure", "first_departing_layer"]

# Per tensor and relative to its largest value: rounding stays far below, see TOLERANCES.
_CLOSE = 2e-5
# The longest chain of temporaries of one operation (GELU by erf has 4). Not unlimited: a small
# error can fade away within a network, and a match far after an error proves nothing about it.
_LONGEST_CHAIN = 5
# Root mean square error of a tensor relative to its own size, per precision.
_NOISE = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.3}


@dataclass(frozen=True)
class Departure:
    """The first ONNX node whose output differs from the original.

    `max_abs_error` is against the nearest value of the original with the same shape, and
    `scale` is that value's largest magnitude; both None where the original has no such shape.
    """

    node: str
    op: str
    module: str
    max_abs_error: float | None
    scale: float | None

    def describe(self) -> str:
        """The layer and its error, for a message."""
        text = f"'{self.module}' ({self.op})"
        if self.max_abs_error is not None:
            text += f", off by up to {self.max_abs_error:.2e} where values reach {self.scale:.2e}"
        return text


def first_departing_layer(
    reference: nn.Module | str | Path,
    converted: str | Path,
    images: np.ndarray,
    *,
    precision: str = "fp32",
) -> Departure | None:
    """Find where a converted network starts to differ.

    Args:
        reference: The PyTorch model, or the ONNX file this one was converted from.
        converted: The ONNX file or OpenVINO .xml to check.
        images: f32[B, 3, H, W]; one is enough, if it shows the error.
        precision: Selects how much error counts, between two ONNX files.

    Returns:
        The first differing node, or None when every layer is within bounds.
    """
    if Path(converted).suffix == ".xml":
        from .openvino_export import openvino_intermediates

        assert isinstance(reference, (str, Path)), "an IR is made from an ONNX file"
        model = read_onnx(reference)  # its nodes give the order of the search
        original = intermediate_values(model, images)
        inside = openvino_intermediates(converted, images)
        return _first_by_name(model, inside, original, _NOISE[precision])
    model = read_onnx(converted)
    values = intermediate_values(model, images)
    if isinstance(reference, (str, Path)):
        original = intermediate_values(read_onnx(reference), images)
        return _first_by_name(model, values, original, _NOISE[precision])
    return _first_by_value(model, values, _recorded(reference, images))


def _first_by_value(
    model: onnx.ModelProto, values: dict[str, np.ndarray], recorded: _Recorded
) -> Departure | None:
    steps: dict[str, int] = {}  # from a tensor to the nearest matched one after it
    for node in reversed(model.graph.node):
        for name in node.output:
            if name in values and recorded.holds(values[name]):
                steps[name] = 0
        nearest = min((steps[name] for name in node.output if name in steps), default=None)
        if nearest is not None:
            for name in node.input:
                steps[name] = min(steps.get(name, nearest + 1), nearest + 1)
    for node in model.graph.node:
        for name in node.output:
            if name in values and steps.get(name, _LONGEST_CHAIN) >= _LONGEST_CHAIN:
                return _departure(node, values[name], recorded.nearest(values[name]))
    return None


def _first_by_name(
    model: onnx.ModelProto,
    values: dict[str, np.ndarray],
    original: dict[str, np.ndarray],
    bound: float,
) -> Departure | None:
    for node in model.graph.node:
        for name in node.output:
            wanted = original.get(name)
            if wanted is None or name not in values or values[name].shape != wanted.shape:
                continue
            error = np.linalg.norm(values[name].astype(np.float64) - wanted)
            if not error <= bound * max(float(np.linalg.norm(wanted)), 1e-12):
                return _departure(node, values[name], wanted)
    return None


def _departure(node: onnx.NodeProto, got: np.ndarray, wanted: np.ndarray | None) -> Departure:
    name = node.name or node.output[0]
    error = None if wanted is None else float(np.abs(got.astype(np.float64) - wanted).max())
    scale = None if wanted is None else float(np.abs(wanted).max())
    return Departure(name, node.op_type, module_of(name), error, scale)


class _Recorded:
    """Values of a PyTorch forward pass, looked up by shape and content."""

    def __init__(self) -> None:
        self._by_shape: dict[tuple[int, ...], list[tuple[float, np.ndarray]]] = {}

    def add(self, value: np.ndarray) -> None:
        largest = float(np.abs(value).max(initial=0.0))
        self._by_shape.setdefault(value.shape, []).append((largest, value))

    def holds(self, value: np.ndarray) -> bool:
        largest = float(np.abs(value).max(initial=0.0))
        if np.ptp(value) <= _CLOSE * largest:
            return False  # a constant (the zeros of a dead branch, say) matches whatever the input
        for scale, wanted in self._by_shape.get(value.shape, ()):
            allowed = _CLOSE * scale
            # The largest magnitudes must agree as well, and cost nothing to compare.
            if abs(largest - scale) <= allowed and np.abs(value - wanted).max() <= allowed:
                return True
        return False

    def nearest(self, value: np.ndarray) -> np.ndarray | None:
        candidates = [wanted for _, wanted in self._by_shape.get(value.shape, ())]
        return min(candidates, key=lambda w: float(np.square(value - w).sum()), default=None)


def _recorded(model: nn.Module, images: np.ndarray) -> _Recorded:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    recorded = _Recorded()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            for tensor in _tensors(result):
                if tensor.is_floating_point():
                    # A copy: in-place activations overwrite the value.
                    recorded.add(tensor.detach().float().cpu().numpy().copy())
            return result

    def _tensors(result: Any) -> Iterator[torch.Tensor]:
        if isinstance(result, torch.Tensor):
            yield result
        elif isinstance(result, (tuple, list)):
            for part in result:
                yield from _tensors(part)

    training = model.training
    first = next(model.parameters(), None)
    batch = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
    try:
        with torch.no_grad(), Recorder():
            model.eval()(batch if first is None else batch.to(first.device))
    finally:
        model.train(training)
    return recorded
