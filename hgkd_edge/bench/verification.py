"""Is it the right answer that is measured? The same images through what is about to be timed and
through ONNX Runtime on this machine, before anything is timed.

Engines and runtimes can compute nonsense silently where the ONNX file is right, so the file's own
proof at export is not enough. Bounds are those of `exporters.verify`.
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
from hgkd_edge.errors import HgkdError

__all__ = ["Probe", "WrongOutputs", "compare", "loosest", "make_probe"]

# Rows of exporters' table, from the tightest. bf16 has 8 bits: emulated on five CNNs, an error of
# 3e-3 to 9e-3, which is within fp16's row.
_ROWS = ("fp32", "tf32", "fp16", "int8")
_ROW_OF = {"bf16": "fp16"}


class WrongOutputs(HgkdError):
    """What is about to be timed computes something else than its ONNX file."""

    exit_code = 1


@dataclass(frozen=True)
class Probe:
    """What is fed, and what has to be computed from it.

    Args:
        feeds: Input name -> array, one entry per call; the first is also what is measured.
        inputs: The record of an entry.
        wanted: Output name -> array, one entry per call; None when nothing can be compared, and
            then `reason` says why.
        reason: See `wanted`.
    """

    feeds: list[dict[str, np.ndarray]] = field(repr=False)
    inputs: list[InputInfo]
    wanted: list[Outputs] | None = field(repr=False)
    reason: str = ""

    @property
    def images(self) -> int:
        """Images that are compared."""
        return len(self.feeds) * self.inputs[0].shape[0] if self.inputs else len(self.feeds)


def make_probe(
    model: ModelFile, *, batch: int, images: np.ndarray | None, most_images: int
) -> Probe:
    """Inputs of one model at one batch size, and ONNX Runtime's outputs for them on this machine.

    Args:
        model: The file; its ONNX file is the reference.
        batch: B.
        images: f32[N, 3, H, W], normalized; None feeds the fixed-seed tensor.
        most_images: Of those, how many are fed at most.
    """
    calls = 1 if images is None else -(-min(most_images, len(images)) // batch)
    feeds: list[dict[str, np.ndarray]] = []
    inputs: list[InputInfo] = []
    for call in range(calls):
        shown = None if images is None else np.roll(images, -call * batch, axis=0)
        arrays, inputs = make_inputs(model, batch=batch, images=shown)
        feeds.append(arrays)
    try:
        session = runtimes.open(model.reference)
        wanted = [
            {name: np.atleast_1d(value) for name, value in session.infer(arrays).items()}
            for arrays in feeds
        ]
    except Exception as error:  # onnxruntime's exceptions share no public base
        text = next(iter(str(error).splitlines()), type(error).__name__)
        return Probe(feeds, inputs, None, f"ONNX Runtime here cannot run the model: {text[:160]}")
    return Probe(feeds, inputs, wanted)


def compare(
    probe: Probe, got: Sequence[Outputs], *, bound: str, reference: str, few: bool
) -> tuple[Verification, str]:
    """The record, and the figures in words.

    Args:
        probe: What was fed.
        got: What was computed, one entry per call.
        bound: Row of exporters' table of tolerances.
        reference: Where ONNX Runtime ran, for the record.
        few: The images are too few for a spread and for ties.
    """
    assert probe.wanted is not None
    wanted, limits = probe.wanted, TOLERANCES[bound]
    relative = cosine = top1 = None
    try:
        agreement = verify(
            lambda call: wanted[int(call[0])],
            lambda call: got[int(call[0])],
            np.arange(len(wanted)),
            precision=bound,
            batch_size=1,
            tolerance=_for(probe, limits, few=few),
        )
        passed, said = agreement.passed, agreement.describe().partition(": ")[2]
        relative, cosine, top1 = (
            agreement.relative_error,
            agreement.cosine,
            agreement.top1_agreement,
        )
    except (ExportError, ValueError, LookupError) as error:  # an output or a call is missing
        passed, said = False, f"the outputs cannot be compared ({error})"
    return Verification(
        images=probe.images,
        source=probe.inputs[0].source,
        reference=f"onnxruntime {onnxruntime.__version__} {reference}",
        bound=bound,
        most_relative_error=limits.relative,
        least_cosine=limits.cosine,
        relative_error=relative if relative is not None and np.isfinite(relative) else None,
        cosine=cosine if cosine is not None and np.isfinite(cosine) else None,
        top1=top1,
        passed=passed,
    ), said


def loosest(*precisions: str) -> str:
    """The row of exporters' table for what is stored and computed in these precisions."""
    return max((_ROW_OF.get(one, one) for one in precisions), key=_ROWS.index)


def _for(probe: Probe, limits: Tolerance, *, few: bool) -> Tolerance:
    if few:
        return replace(limits, noise=None, worst=None, tie=0.0)
    if probe.inputs[0].source == "synthetic":  # noise has no class: every decision is a tie
        return replace(limits, noise=None, worst=None, top1=0.0, iou=0.0)
    return limits
