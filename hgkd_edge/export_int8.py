"""The INT8 files of an export: calibrated once, quantized by flavor, within a bound if asked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from exporters import quantize, runtimes, sensitivity, verify
from exporters.calibrate import Calibration, calibrate
from exporters.choices import METHODS
from exporters.onnx_info import read_onnx
from exporters.quantize import Int8Export, quantize_int8
from exporters.runtimes import Runner
from hgkd_edge.calibration_images import calibration_images
from hgkd_edge.cells import counted
from hgkd_edge.console import console, track_steps
from hgkd_edge.export_options import ExportOptions
from hgkd_edge.export_record import Accuracy, CalibratedOn, ExportRecord, LayerRank
from hgkd_edge.exportable import Exportable
from hgkd_edge.models.quantized import rounding_inputs

__all__ = ["Int8Files", "ScoredInt8"]

RANKING_PHOTOS = 32


@dataclass(frozen=True)
class ScoredInt8:
    """An INT8 file, and its score next to that of the fp32 file."""

    exported: Int8Export
    accuracy: Accuracy

    def to_dict(self) -> dict[str, Any]:
        """Its fields, as `export.json` records them."""
        return {**self.exported.to_dict(), "accuracy": self.accuracy.to_dict()}


class Int8Files:
    """Makes INT8 files from an fp32 file.

    Args:
        fp32: The ONNX file; read when the first file is made.
        subject: Its network, with images to calibrate and to score on.
        options: The INT8 options.
        images: Images that a file is compared on, f[N, 3, H, W].
        record: Gets the calibration and the damage of layers.
    """

    def __init__(
        self,
        fp32: Path,
        subject: Exportable,
        options: ExportOptions,
        images: np.ndarray,
        record: ExportRecord,
    ) -> None:
        self._fp32, self._subject, self._options = fp32, subject, options
        self._images, self._record = images, record

    def make(self, path: Path, flavor: str) -> Int8Export | ScoredInt8:
        """Quantize; with `max_drop` or `sensitivity`, rank the layers one by one first."""
        options, calibration = self._options, self._calibration
        ranked = options.sensitivity or options.max_drop is not None
        ranking = self._rank(flavor) if ranked else []
        if options.max_drop is None:
            return quantize_int8(self._fp32, path, calibration=calibration, flavor=flavor)
        bounded = sensitivity.quantize_within(
            self._fp32,
            path,
            calibration=calibration,
            ranking=ranking,
            score=self._subject.score,
            proof=self._proof,
            max_drop=options.max_drop,
            flavor=flavor,
            progress=lambda kept, drop, agrees: console.print(
                f"INT8 ({flavor}): {drop:.2f} points lost with {counted(kept, 'layer')} in float"
                + ("" if agrees else ", and the outputs do not agree")
            ),
        )
        accuracy = Accuracy(
            float_score=bounded.float_score,
            score=bounded.score,
            max_drop=bounded.max_drop,
            kept_float=list(bounded.kept_float),
            drop=bounded.drop,
            metric=self._subject.metric,
            on=self._subject.scored_on,
        )
        return ScoredInt8(bounded.exported, accuracy)

    @cached_property
    def reference(self) -> nn.Module | Path:
        """What an INT8 file must agree with.

        The fp32 file; of a quantization-aware network, that network as it was trained. Its clipped
        inputs are part of what it learned, and the fp32 file does not clip.
        """
        ranges = self._subject.input_ranges
        return rounding_inputs(self._subject.network, ranges) if ranges else self._fp32

    def _proof(self, runner: Runner) -> verify.Verification:
        reference = runtimes.open(self.reference, names=self._subject.output_names)
        return verify.verify(reference.run, runner, self._images, precision="int8")

    @cached_property
    def _calibration(self) -> Calibration:
        """Ranges of activations, learned ones of a quantization-aware network among them.

        Raises:
            DataError: The calibration images cannot be read.
        """
        options, subject = self._options, self._subject
        images = calibration_images(subject, options)
        with track_steps("calibrating", total=len(images)) as show:
            calibration = calibrate(
                read_onnx(self._fp32),
                images,
                method=options.calibration_method or METHODS[0],
                learned=subject.input_ranges,
                progress=lambda done, total: show(done, "images"),
            )
        self._record.calibration = CalibratedOn(
            method=calibration.method,
            photos=calibration.images,
            source=str(options.calibration_data or "train"),
        )
        if subject.input_ranges:
            self._record.calibration.learned_inputs = len(subject.input_ranges)
        return calibration

    def _rank(self, flavor: str) -> list[sensitivity.LayerDamage]:
        layers = len(quantize.quantizable_nodes(read_onnx(self._fp32)))
        with track_steps(f"ranking layers ({flavor})", total=layers) as show:
            ranking = sensitivity.rank_layers(
                self._fp32,
                self._calibration,
                self._subject.images("train", RANKING_PHOTOS),
                flavor=flavor,
                progress=lambda done, total: show(done, "layers"),
            )
        found = [LayerRank(module=one.module, damage=one.damage) for one in ranking]
        self._record.sensitivity = {**self._record.sensitivity, flavor: found}
        return ranking
