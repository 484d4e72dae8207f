"""Find which layers INT8 damages, and how many of them have to stay in float.

`rank_layers` quantizes one layer at a time and measures the error in the network's outputs.
`quantize_within` keeps the worst layers in float, as few as needed, until the network passes its
verification and its score on held-out images is within a bound of the float network's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import runtimes
from ._graph import module_of
from .atomic_files import SET_ASIDE, set_aside
from .calibrate import Calibration
from .errors import ExportError, VerificationFailed
from .onnx_info import read_onnx
from .quantize import Int8Export, quantizable_nodes, quantize_int8, quantized_graph
from .runtimes import Outputs, Runner
from .verify import Verification

__all__ = ["BoundedInt8", "LayerDamage", "Proof", "Score", "quantize_within", "rank_layers"]

Score = Callable[[Runner], float]
"""Runs a network over held-out images and returns its score in points (0 to 100)."""

Proof = Callable[[Runner], Verification]
"""Compares a network with its original, as it will be compared once it is written."""

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
        """Points lost on held-out images."""
        return self.float_score - self.score

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        entries = {**asdict(self), "drop": self.drop}
        del entries["exported"]
        return entries


def rank_layers(
    onnx_path: str | Path,
    calibration: Calibration,
    images: np.ndarray,
    *,
    flavor: str,
    progress: Progress = lambda done, total: None,
) -> list[LayerDamage]:
    """Every layer with weights, the most damaged by INT8 first.

    Args:
        onnx_path: An fp32 ONNX file.
        calibration: Its ranges.
        images: f32[N, 3, H, W] real images; a few dozen separate the layers well.
        flavor: `tensorrt` or `cpu`.
        progress: Called with (layers done, layers in all).
    """
    if len(images) == 0:
        raise ExportError("no images to rank layers with", hint="give a few real images")
    model = read_onnx(onnx_path)
    wanted = _run(runtimes.open(onnx_path).run, images)
    nodes = quantizable_nodes(model)
    found = []
    for done, node in enumerate(nodes, start=1):
        graph = quantized_graph(model, calibration, flavor=flavor, only=[node])
        got = _run(runtimes.open(graph.SerializeToString()).run, images)
        found.append(LayerDamage(node, module_of(node), _damage(wanted, got)))
        progress(done, len(nodes))
    return sorted(found, key=lambda layer: -layer.damage)


@dataclass(frozen=True)
class _Trial:
    """The file that a network with some layers in float is written to."""

    drop: float
    verification: Verification

    def within(self, max_drop: float) -> bool:
        return self.drop <= max_drop and self.verification.passed

    def describe(self) -> str:
        agrees = "agrees" if self.verification.passed else "does not agree"
        return f"{self.drop:.2f} points lost, {agrees} ({self.verification.describe()})"


def quantize_within(
    onnx_path: str | Path,
    path: str | Path,
    *,
    calibration: Calibration,
    ranking: Sequence[LayerDamage],
    score: Score,
    proof: Proof,
    max_drop: float,
    flavor: str,
    progress: Callable[[int, float, bool], None] = lambda kept, drop, agrees: None,
) -> BoundedInt8:
    """Quantize to INT8, keeping the worst layers in float until the result is within its bounds.

    The number of layers to keep is doubled until the bounds hold, then halved back to the smallest
    that passed. The same bounds apply to the written file.

    Args:
        onnx_path: An fp32 ONNX file.
        path: Where to write the INT8 file.
        calibration: Ranges of the fp32 file.
        ranking: Layers as `rank_layers` returned them for this flavor.
        score: Held-out score in points.
        proof: The comparison that the file has to pass.
        max_drop: The most points that INT8 may lose.
        flavor: `tensorrt` or `cpu`.
        progress: Called after each try with (layers kept in float, points lost, proof passed).

    Raises:
        VerificationFailed: Not even one quantized layer is within the bounds; that file is set
            aside.
    """
    model = read_onnx(onnx_path)
    float_score = score(runtimes.open(onnx_path).run)
    most = max(0, len(ranking) - 1)
    trials: dict[int, _Trial] = {}

    def holds(kept: int) -> bool:
        nodes = [layer.node for layer in ranking[:kept]]
        graph = quantized_graph(model, calibration, flavor=flavor, exclude=nodes)
        runner = runtimes.open(graph.SerializeToString()).run
        trial = trials[kept] = _Trial(float_score - score(runner), proof(runner))
        progress(kept, trial.drop, trial.verification.passed)
        return trial.within(max_drop)

    kept = _fewest(holds, most=most)
    nodes = [layer.node for layer in ranking[: most if kept is None else kept]]
    exported = quantize_int8(
        onnx_path, path, calibration=calibration, flavor=flavor, keep_float=nodes
    )
    if kept is None:
        raise _nothing_holds(path, trials[most], max_drop)
    return BoundedInt8(
        exported, float_score, score(runtimes.open(path).run), max_drop, tuple(nodes)
    )


def _nothing_holds(path: str | Path, trial: _Trial, max_drop: float) -> VerificationFailed:
    aside = set_aside(path, SET_ASIDE)
    larger = "a larger --max-drop or " if trial.drop > max_drop else ""
    return VerificationFailed(
        f"'{Path(path).name}' is out of bounds even with one layer quantized: {trial.describe()}; "
        f"--max-drop allows {max_drop:g} points",
        hint=f"use {larger}--precision fp16; the file was kept as '{aside}' for inspection, do not "
        "deploy it",
    )


def _fewest(holds: Callable[[int], bool], *, most: int) -> int | None:
    """The smallest number of float layers that passed; None if none did."""
    if holds(0):
        return 0
    if most == 0:
        return None
    failed, held = 0, 1
    while not holds(held):
        if held >= most:
            return None
        failed, held = held, min(2 * held, most)
    while held - failed > 1:
        middle = (failed + held) // 2
        if holds(middle):
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
