"""Is it the right answer that is measured? The same images through the engine on the device and
through ONNX Runtime here, before anything is timed.

Engines can compute nonsense silently where the ONNX file is right, so the file's own proof at
export is not enough. Bounds are those of `exporters.verify`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from exporters.errors import ExportError
from exporters.onnx_info import open_session
from exporters.verify import TOLERANCES, verify
from hgkd_edge.bench.edge.limits import MOST_OUTPUTS_TEXT
from hgkd_edge.bench.edge.link import AgentFailed
from hgkd_edge.bench.edge.stream import unpack
from hgkd_edge.bench.inputs import make_inputs
from hgkd_edge.bench.models import ModelFile
from hgkd_edge.bench.records import InputInfo, Verification
from hgkd_edge.parsing import parse_json

__all__ = ["Probe", "Verifier", "make_probe", "parse_outputs"]

# Each image is a start of trtexec on the device (batch 1), a second or two.
IMAGES = 4
# About 10 bytes each in trtexec's JSON.
MOST_VALUES = 1_000_000


@dataclass(frozen=True)
class Probe:
    """What is fed, and what has to come out.

    Args:
        feeds: Input name -> array, one entry per call; the first is also what is measured.
        inputs: The record of an entry.
        wanted: Output name -> values of all calls, stacked; None when nothing can be held against
            them, and then `reason` says why.
        reason: See `wanted`.
    """

    feeds: list[dict[str, np.ndarray]] = field(repr=False)
    inputs: list[InputInfo]
    wanted: dict[str, np.ndarray] | None = field(repr=False)
    reason: str = ""

    @property
    def images(self) -> int:
        """Rows that are compared."""
        return len(next(iter(self.wanted.values()))) if self.wanted else 0


def make_probe(model: ModelFile, *, batch: int, images: np.ndarray | None) -> Probe:
    """Inputs of one model at one batch size, and ONNX Runtime's outputs for them on this machine.

    Args:
        model: The ONNX file.
        batch: B.
        images: f32[N, 3, H, W], normalised; None feeds the fixed-seed tensor.
    """
    calls = 1 if images is None else -(-min(IMAGES, len(images)) // batch)
    feeds: list[dict[str, np.ndarray]] = []
    inputs: list[InputInfo] = []
    for call in range(calls):
        shown = None if images is None else np.roll(images, -call * batch, axis=0)
        arrays, inputs = make_inputs(model, batch=batch, images=shown)
        feeds.append(arrays)
    try:
        session = open_session(model.path)
        names = [output.name for output in session.get_outputs()]
        seen = [session.run(names, arrays) for arrays in feeds]
        wanted = {
            name: np.concatenate([np.atleast_1d(one[place]) for one in seen])
            for place, name in enumerate(names)
        }
    except Exception as error:  # onnxruntime's exceptions share no public base
        text = next(iter(str(error).splitlines()), type(error).__name__)
        return Probe(feeds, inputs, None, f"ONNX Runtime here cannot run the model: {text[:160]}")
    if sum(values.size for values in wanted.values()) > MOST_VALUES:
        return Probe(feeds, inputs, None, "the outputs are too large to be fetched")
    return Probe(feeds, inputs, wanted)


class Verifier:
    """Judges the outputs that the agent sends, case by case.

    Args:
        probes: Case id -> what was fed.
        cases: Case id -> (name for messages, precision that was built, computed by TensorRT).
        unverified: Note a disagreement instead of refusing to measure.
    """

    def __init__(
        self,
        probes: Mapping[str, Probe],
        cases: Mapping[str, tuple[str, str, bool]],
        *,
        unverified: bool,
    ) -> None:
        self.found: dict[str, Verification] = {}
        self._probes, self._cases, self._unverified = probes, cases, unverified

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Compare the outputs of one case.

        Raises:
            AgentFailed: They disagree, or cannot be read.
        """
        name, precision, tensorrt = self._cases[event["case"]]
        probe = self._probes[event["case"]]
        # TensorRT computes FP32 in TF32 where the GPU has it: 10 bits of mantissa, as in FP16.
        bound = "fp16" if tensorrt and precision == "fp32" else precision
        verification, said = _compare(probe, _texts(event), bound)
        self.found[event["case"]] = verification
        if not verification.passed and not self._unverified:
            raise AgentFailed(
                f"{name}: what the device computes is not what the ONNX file says: {said}",
                hint="do not deploy this engine; try another precision, or --unverified to "
                "measure it all the same",
            )


def _texts(event: Mapping[str, Any]) -> list[str]:
    return [unpack(text, most=MOST_OUTPUTS_TEXT) for text in event["texts"]]


def _compare(probe: Probe, texts: Sequence[str], bound: str) -> tuple[Verification, str]:
    """The record, and the figures in words."""
    import onnxruntime

    assert probe.wanted is not None
    wanted = probe.wanted
    limits = TOLERANCES[bound]
    relative = cosine = top1 = None
    try:
        calls = [parse_outputs(text) for text in texts]
        got = {name: np.concatenate([one[name] for one in calls]) for name in calls[0]}
        rows = np.zeros((probe.images, 1))
        agreement = verify(
            lambda _: wanted,
            lambda _: got,
            rows,
            precision=bound,
            batch_size=len(rows),
            # A few images, or noise: too little for a spread, and the network is the same.
            tolerance=replace(limits, noise=None, worst=None, tie=0.0),
        )
        passed, said = agreement.passed, agreement.describe()
        relative, cosine, top1 = (
            agreement.relative_error,
            agreement.cosine,
            agreement.top1_agreement,
        )
    except (ExportError, ValueError, KeyError) as error:  # KeyError: an output is missing
        passed, said = False, f"the outputs cannot be compared ({error})"
    return Verification(
        images=probe.images,
        source=probe.inputs[0].source,
        reference=f"onnxruntime {onnxruntime.__version__} on the measuring machine",
        bound=bound,
        most_relative_error=limits.relative,
        least_cosine=limits.cosine,
        relative_error=relative if relative is not None and np.isfinite(relative) else None,
        cosine=cosine if cosine is not None and np.isfinite(cosine) else None,
        top1=top1,
        passed=passed,
    ), said


def parse_outputs(text: str) -> dict[str, np.ndarray]:
    """Output name -> f64 array, from `--exportOutput` (layout: `exportJSONOutput` in
    NVIDIA/TensorRT samples/common/sampleReporting.cpp).

    Values that are not finite are printed as `nan` and `inf`, which JSON has no words for.

    Raises:
        ValueError: Not of this layout.
    """
    text = re.sub(r"(?<=[\[\s,-])nan(?=[\s,\]])", "NaN", text)
    text = re.sub(r"(?<=[\[\s,-])inf(?=[\s,\]])", "Infinity", text).replace("-NaN", "NaN")
    found = {}
    try:
        for entry in parse_json(text):
            shape = [int(size) for size in entry["dimensions"].split("x")]
            found[entry["name"]] = np.array(entry["values"], dtype=np.float64).reshape(shape)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no exported outputs ({type(error).__name__}: {error})") from error
    return found
