"""Which layers INT8 hurts, and how many of them have to stay in float.

`rank_layers` quantises one layer at a time and looks at what it does to the network's outputs.
`quantize_within` leaves the worst layers in float, as few as will do, until a score on held-out
images is within a bound of the float network's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ._graph import module_of
from .calibrate import Calibration
from .errors import ConversionFailed, ExportError
from .onnx_info import read_onnx
from .quantize import Int8Export, quantizable_nodes, quantize_int8, quantized_graph
from .runners import Outputs, Runner, onnx_runner

__all__ = ["BoundedInt8", "LayerDamage", "Score", "quantize_within", "rank_layers"]

Score = Callable[[Runner], float]
"""Runs a network over held-out images and returns its score in points (0 to 100)."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LayerDamage:
    """`damage`: root mean square error of the outputs, relative to their own size, when this layer
    alone is INT8."""

    node: str
    module: str
    damage: float


@dataclass(frozen=True)
class BoundedInt8:
    """An INT8 file within its bound; `kept_float` are the layers that had to stay in float."""

    exported: Int8Export
    float_score: float
    score: float
    max_drop: float
    kept_float: tuple[str, ...]

    @property
    def drop(self) -> float:
        return self.float_score - self.score

    def to_dict(self) -> dict[str, Any]:
        entries = {**asdict(self), "drop": self.drop}
        del entries["exported"]
        return entries


def rank_layers(
    onnx_path: str | Path,
    calibration: Calibration,
    images: np.ndarray,
    *,
    flavour: str,
    progress: Progress = lambda done, total: None,
) -> list[LayerDamage]:
    """Every layer with weights, the most damaged by INT8 first.

    Args:
        onnx_path: An fp32 ONNX file.
        calibration: Its ranges.
        images: f32[N, 3, H, W] real images; a few dozen separate the layers well.
        flavour: `tensorrt` or `cpu`.
        progress: Called with (layers done, layers in all).
    """
    if len(images) == 0:
        raise ExportError("no images to rank layers with", hint="give a few real images")
    model = read_onnx(onnx_path)
    wanted = _run(onnx_runner(onnx_path), images)
    nodes = quantizable_nodes(model)
    found = []
    for done, node in enumerate(nodes, start=1):
        graph = quantized_graph(model, calibration, flavour=flavour, only=[node])
        got = _run(onnx_runner(graph.SerializeToString()), images)
        found.append(LayerDamage(node, module_of(node), _damage(wanted, got)))
        progress(done, len(nodes))
    return sorted(found, key=lambda layer: -layer.damage)


def quantize_within(
    onnx_path: str | Path,
    path: str | Path,
    *,
    calibration: Calibration,
    ranking: Sequence[LayerDamage],
    score: Score,
    max_drop: float,
    flavour: str,
    progress: Callable[[int, float], None] = lambda kept, drop: None,
) -> BoundedInt8:
    """Quantise to INT8, keeping the worst layers in float until the drop is within the bound.

    The number of layers to keep is doubled until the bound holds, then halved back to the smallest
    that was seen to hold.

    Args:
        onnx_path: An fp32 ONNX file.
        path: Where to write the INT8 file.
        calibration: Ranges of the fp32 file.
        ranking: Layers as `rank_layers` found them for this flavour.
        score: Held-out score in points.
        max_drop: The most points that INT8 may lose.
        flavour: `tensorrt` or `cpu`.
        progress: Called after each try with (layers kept in float, points lost).

    Raises:
        ConversionFailed: Not even one quantised layer is within the bound.
    """
    model = read_onnx(onnx_path)
    float_score = score(onnx_runner(onnx_path))

    def drop_with(kept: int) -> float:
        nodes = [layer.node for layer in ranking[:kept]]
        graph = quantized_graph(model, calibration, flavour=flavour, exclude=nodes)
        drop = float_score - score(onnx_runner(graph.SerializeToString()))
        progress(kept, drop)
        return drop

    kept = _fewest(drop_with, most=len(ranking) - 1, bound=max_drop)
    if kept is None:
        raise ConversionFailed(
            f"INT8 loses more than {max_drop:g} points even with one layer quantised",
            hint="allow a larger --max-drop, or export with --precision fp16",
        )
    nodes = [layer.node for layer in ranking[:kept]]
    exported = quantize_int8(
        onnx_path, path, calibration=calibration, flavour=flavour, keep_float=nodes
    )
    return BoundedInt8(exported, float_score, score(onnx_runner(path)), max_drop, tuple(nodes))


def _fewest(drop_with: Callable[[int], float], *, most: int, bound: float) -> int | None:
    """The smallest number of float layers whose drop was seen within the bound; None if none is."""
    if drop_with(0) <= bound:
        return 0
    failed, held = 0, min(1, most)
    while drop_with(held) > bound:
        if held >= most:
            return None
        failed, held = held, min(2 * held, most)
    while held - failed > 1:
        middle = (failed + held) // 2
        if drop_with(middle) <= bound:
            held = middle
        else:
            failed = middle
    return held


def _run(runner: Runner, images: np.ndarray) -> list[Outputs]:
    return [runner(images[start : start + 8]) for start in range(0, len(images), 8)]


def _damage(wanted: Sequence[Outputs], got: Sequence[Outputs]) -> float:
    """Mean over the outputs of |got - wanted| / |wanted|, in the Euclidean norm over all images."""
    errors = []
    pairs = list(zip(wanted, got, strict=True))
    for name in wanted[0]:
        error = sum(float(np.square(b[name] - a[name]).sum()) for a, b in pairs)
        size = sum(float(np.square(a[name]).sum()) for a in wanted)
        errors.append((error / max(size, 1e-24)) ** 0.5)
    return float(np.mean(errors))
