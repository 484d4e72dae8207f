"""Judging what a device computes: trtexec's exported outputs, compared before anything is timed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hgkd_edge.bench.edge.limits import MOST_OUTPUTS_TEXT
from hgkd_edge.bench.edge.stream import unpack
from hgkd_edge.bench.models import ModelFile
from hgkd_edge.bench.records import Verification
from hgkd_edge.bench.verification import Probe, WrongOutputs, compare, make_probe
from hgkd_edge.parsing import parse_json

if TYPE_CHECKING:
    from hgkd_edge.bench.edge.job import EdgeCase

__all__ = ["Verifier", "fetchable_probe", "parse_outputs"]

# Each image is a start of trtexec on the device (batch 1), a second or two.
IMAGES = 4
# About 10 bytes each in trtexec's JSON.
MOST_VALUES = 1_000_000


def fetchable_probe(model: ModelFile, *, batch: int, images: np.ndarray | None) -> Probe:
    """A probe of few images, whose outputs are small enough to be fetched."""
    probe = make_probe(model, batch=batch, images=images, most_images=IMAGES)
    values = sum(array.size for outputs in probe.wanted or () for array in outputs.values())
    if values > MOST_VALUES:
        return Probe(probe.feeds, probe.inputs, None, "the outputs are too large to be fetched")
    return probe


class Verifier:
    """Judges the outputs that the agent sends, case by case.

    Args:
        cases: The cases of the job.
        unverified: Note a disagreement instead of refusing to measure.
    """

    def __init__(self, cases: Iterable[EdgeCase], *, unverified: bool) -> None:
        self.found: dict[str, Verification] = {}
        self._cases = {case.id: case for case in cases}
        self._unverified = unverified

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Compare the outputs of one case.

        Raises:
            WrongOutputs: They disagree, or cannot be read.
        """
        case = self._cases[event["case"]]
        texts = [unpack(text, most=MOST_OUTPUTS_TEXT) for text in event["texts"]]
        try:
            got = [parse_outputs(text) for text in texts]
        except ValueError:
            got = []
        verification, said = compare(
            case.probe,
            got,
            bound=case.bound,
            reference="on the measuring machine",
            few=True,
        )
        self.found[case.id] = verification
        if not verification.passed and not self._unverified:
            raise WrongOutputs(
                f"{case.name}: what the device computes is not what the ONNX file says: {said}",
                hint="do not deploy this engine; try another precision, or --unverified to "
                "measure it all the same",
            )


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
