"""Verify outputs before timing, with the same images in ONNX Runtime on this machine.

Engines and runtimes can silently compute wrong outputs from a correct ONNX file, so verifying the
file at export is not enough. Bounds are those of `exporters.verify`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnxruntime

from exporters import runtimes
from exporters.errors import ExportError
from exporters.runtimes import Outputs
from exporters.verify import TOLERANCES, Tolerance, verify
from hgkd_edge.bench.inputs import make_inputs
from hgkd_edge.bench.models import ModelFile
from hgkd_edge.bench.records import InputInfo, Verification
from hgkd_edge.errors import UserError

__all__ = ["Probe", "WrongOutputs", "judge", "loosest", "make_probe"]

# Rows of exporters' table, from the tightest. bf16 has 8 bits: emulated on five CNNs, an error of
# 3e-3 to 9e-3, which is within fp16's row.
_ROWS = ("fp32", "tf32", "fp16", "int8")
_ROW_OF = {"bf16": "fp16"}


class WrongOutputs(UserError):
    """The network to be timed gives other outputs than its ONNX file."""

    exit_code = 1


@dataclass(frozen=True)
class Probe:
    """The inputs of each call (the first is also used for timing), their record, and the outputs
    that the file `onnx` computes: None when nothing can be compared, for this `reason`."""

    feeds: list[dict[str, np.ndarray]] = field(repr=False)
    inputs: list[InputInfo]
    wanted: list[Outputs] | None = field(repr=False)
    onnx: str
    reason: str = ""


def make_probe(
    model: ModelFile,
    *,
    batch: int,
    images: np.ndarray | None,
    most_images: int,
    most_values: int | None = None,
) -> Probe:
    """Inputs of one model at one batch size, and ONNX Runtime's outputs for them on this machine.

    Args:
        images: f32[N, 3, H, W], normalized, of which `most_images` are fed; None feeds the
            fixed-seed tensor.
        most_values: Maximum output values of all calls to compare; None: no limit.
    """
    calls = 1 if images is None else -(-min(most_images, len(images)) // batch)
    shown = [None if images is None else np.roll(images, -n * batch, axis=0) for n in range(calls)]
    made = [make_inputs(model, batch=batch, images=part) for part in shown]
    feeds, inputs, onnx = [one for one, _info in made], made[0][1], model.reference.name
    try:
        session = runtimes.open(model.reference)
        wanted = [
            {name: np.atleast_1d(value) for name, value in session.infer(arrays).items()}
            for arrays in feeds
        ]
    except Exception as error:  # onnxruntime's exceptions share no public base
        text = next(iter(str(error).splitlines()), type(error).__name__)
        return Probe(feeds, inputs, None, onnx, f"ONNX Runtime here cannot run it: {text[:160]}")
    values = sum(array.size for outputs in wanted for array in outputs.values())
    if most_values is not None and values > most_values:
        return Probe(feeds, inputs, None, onnx, "the outputs are too large to be fetched")
    return Probe(feeds, inputs, wanted, onnx)


def judge(
    name: str,
    probe: Probe,
    got: Sequence[Outputs],
    *,
    bound: str,
    where: str,
    few: bool = False,
    unverified: bool = False,
) -> Verification | str:
    """Compare the outputs of a case, or say why they cannot be compared.

    Args:
        got: The outputs, one entry per call.
        bound: Row of exporters' table of tolerances.
        where: Where ONNX Runtime computed the reference outputs, for the record.
        few: The images are too few for a spread and for ties.
        unverified: Record a disagreement instead of refusing to measure.

    Raises:
        WrongOutputs: They disagree.
    """
    wanted, limits, seen = probe.wanted, TOLERANCES[bound], None
    if wanted is None:
        return probe.reason
    source = probe.inputs[0].source if probe.inputs else "synthetic"
    try:
        seen = verify(
            lambda call: wanted[int(call[0])],
            lambda call: got[int(call[0])],
            np.arange(len(wanted)),
            precision=bound,
            batch_size=1,
            tolerance=_for(source, limits, few=few),
        )
        figures = seen.describe().partition(": ")[2]
    except (ExportError, ValueError, LookupError) as error:  # an output or a call is missing
        figures = f"the outputs cannot be compared ({error})"
    passed = seen is not None and seen.passed
    if not passed and not unverified:
        raise WrongOutputs(
            f"{name}: its outputs differ from those of '{probe.onnx}': {figures}",
            hint="do not deploy it; export it again, try another precision, or measure it anyway "
            "with --unverified",
        )
    return Verification(
        images=len(probe.feeds) * (probe.inputs[0].shape[0] if probe.inputs else 1),
        source=source,
        reference=f"onnxruntime {onnxruntime.__version__} {where}",
        bound=bound,
        most_relative_error=limits.relative,
        least_cosine=limits.cosine,
        relative_error=_finite(seen.relative_error) if seen else None,
        cosine=_finite(seen.cosine) if seen else None,
        top1=seen.top1_agreement if seen else None,
        passed=passed,
    )


def loosest(*precisions: str) -> str:
    """The row of exporters' table for these storage and compute precisions."""
    return max((_ROW_OF.get(one, one) for one in precisions), key=_ROWS.index)


def _for(source: str, limits: Tolerance, *, few: bool) -> Tolerance:
    if few:
        return replace(limits, noise=None, worst=None, tie=0.0)
    if source == "synthetic":  # noise has no class: every decision is a tie
        return replace(limits, noise=None, worst=None, top1=0.0, iou=0.0)
    return limits


def _finite(figure: float | None) -> float | None:
    return figure if figure is not None and np.isfinite(figure) else None
