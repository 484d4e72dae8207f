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

from exporters.errors import ExportError
from exporters.onnx_info import open_session
from exporters.runners import Outputs
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
        onnx: Name of the file that computed it.
        reason: See `wanted`.
    """

    feeds: list[dict[str, np.ndarray]] = field(repr=False)
    inputs: list[InputInfo]
    wanted: list[Outputs] | None = field(repr=False)
    onnx: str
    reason: str = ""

    @property
    def images(self) -> int:
        """Images that are compared."""
        return len(self.feeds) * self.inputs[0].shape[0] if self.inputs else len(self.feeds)


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
        model: The file; its ONNX file is the reference.
        batch: B.
        images: f32[N, 3, H, W], normalized; None feeds the fixed-seed tensor.
        most_images: Of those, how many are fed at most.
        most_values: Of outputs of all calls that can be compared; None compares any number.
    """
    calls = 1 if images is None else -(-min(most_images, len(images)) // batch)
    feeds: list[dict[str, np.ndarray]] = []
    inputs: list[InputInfo] = []
    onnx = model.reference.name
    for call in range(calls):
        shown = None if images is None else np.roll(images, -call * batch, axis=0)
        arrays, inputs = make_inputs(model, batch=batch, images=shown)
        feeds.append(arrays)
    try:
        session = open_session(model.reference)
        names = [output.name for output in session.get_outputs()]
        wanted = [
            dict(zip(names, map(np.atleast_1d, session.run(names, arrays)), strict=True))
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
    """How the outputs of a case compare, or why they cannot be compared.

    Args:
        name: The case.
        probe: What was fed.
        got: What was computed, one entry per call.
        bound: Row of exporters' table of tolerances.
        where: Where ONNX Runtime computed the right ones, for the record.
        few: The images are too few for a spread and for ties.
        unverified: Record a disagreement instead of refusing to measure.

    Raises:
        WrongOutputs: They disagree.
    """
    if probe.wanted is None:
        return probe.reason
    verification, said = _compare(probe, probe.wanted, got, bound=bound, where=where, few=few)
    if not verification.passed and not unverified:
        raise WrongOutputs(
            f"{name}: what it computes is not what '{probe.onnx}' says: {said}",
            hint="do not deploy it; export it again or try another precision, or --unverified to "
            "measure it all the same",
        )
    return verification


def _compare(
    probe: Probe,
    wanted: Sequence[Outputs],
    got: Sequence[Outputs],
    *,
    bound: str,
    where: str,
    few: bool,
) -> tuple[Verification, str]:
    """The record, and the figures in words."""
    limits = TOLERANCES[bound]
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
        reference=f"onnxruntime {onnxruntime.__version__} {where}",
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
