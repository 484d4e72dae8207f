"""How well two sets of outputs agree, in figures and against bounds.

Numbers (largest error, cosine) are looked at for every output; decisions where an output holds
some: the best class of `logits` or `probabilities` ([B, K], or per pixel [B, K, H, W], there also
as IoU of the two label maps), and of a detector's `boxes` [B, A, 4] and `scores` [B, A, K] what its
most confident anchors say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .errors import ExportError, VerificationFailed

__all__ = ["TOLERANCES", "Comparison", "OutputAgreement", "Tolerance"]

_CLASS_SCORES = ("logits", "probabilities")
_CONFIDENT = 10  # anchors of an image whose boxes and classes are looked at


@dataclass(frozen=True)
class Tolerance:
    """What a conversion may lose; None leaves a figure unjudged.

    Args:
        relative: Largest error, as a part of the largest reference value.
        cosine: Lowest cosine similarity between an image's outputs on the two sides.
        top1: Lowest share of images (pixels, confident anchors) that keep their best class.
        iou: Lowest mean overlap of label maps, or of confident anchors' boxes.
    """

    relative: float | None
    cosine: float
    top1: float
    iou: float = 0.0


# fp32 differs by rounding alone. Half precision has 11 bits, and errors add up over depth. INT8
# spreads its error unevenly, so a single worst value says little; direction and decisions count.
TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(relative=1e-4, cosine=0.99999, top1=0.99, iou=0.99),
    "fp16": Tolerance(relative=3e-2, cosine=0.999, top1=0.98, iou=0.95),
    "int8": Tolerance(relative=None, cosine=0.97, top1=0.95, iou=0.80),
}


@dataclass(frozen=True)
class OutputAgreement:
    """How well one output agrees.

    `top1` and `iou` are None where the output holds no such decisions; `worst_image` is the index
    of the image with the largest error.
    """

    name: str
    max_abs_error: float
    relative_error: float
    rms_error: float
    cosine: float
    top1: float | None
    iou: float | None
    worst_image: int
    passed: bool


class Comparison:
    """Running figures of all outputs over batches, so that feature maps need not be kept."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sums] = {}

    def add(self, wanted: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]) -> None:
        """Take in the two sides' outputs, [B, ...] each, for the same B images.

        Raises:
            VerificationFailed: They do not have the same outputs or shapes.
            ExportError: The reference is not finite.
        """
        if wanted.keys() != got.keys():
            raise VerificationFailed(
                f"the converted network's outputs are {sorted(got)}, "
                f"the original's {sorted(wanted)}"
            )
        for name, values in wanted.items():
            self._sums.setdefault(name, _Sums(name)).add(values, got[name])
        if {"boxes", "scores"} <= wanted.keys():
            anchors = _confident_anchors(wanted["scores"])  # [B, _CONFIDENT]
            self._sums["scores"].add_decisions(_at(wanted["scores"], anchors).argmax(-1),
                                               _at(got["scores"], anchors).argmax(-1))  # fmt: skip
            self._sums["boxes"].add_overlaps(
                _box_iou(_at(wanted["boxes"], anchors), _at(got["boxes"], anchors))
            )

    def agreements(self, bound: Tolerance) -> tuple[OutputAgreement, ...]:
        """Every output's figures, judged."""
        return tuple(sums.agreement(bound) for sums in self._sums.values())


class _Sums:
    """Running figures of one output."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.largest_error = self.largest_value = 0.0
        self.squared_error = self.squared_value = 0.0
        self.cosine = 1.0
        self.images = self.worst_image = 0
        self.same = self.decisions = 0
        self.overlaps: list[float] = []
        self.label_maps: _LabelMaps | None = None

    def add(self, wanted: np.ndarray, got: np.ndarray) -> None:
        if wanted.shape != got.shape:
            raise VerificationFailed(
                f"output '{self.name}' has shape {got.shape}, the original's is {wanted.shape}"
            )
        if not np.isfinite(wanted).all():
            raise ExportError(
                f"the original gives non-finite values at output '{self.name}'",
                hint="check the model and the images before exporting it",
            )
        # A non-finite candidate is an infinite error, never one that comparisons overlook.
        error = np.where(np.isfinite(got), np.abs(got.astype(np.float64) - wanted), np.inf)
        worst = error.reshape(len(error), -1).max(axis=1, initial=0.0)  # [B]
        if worst.max() > self.largest_error:
            self.largest_error = float(worst.max())
            self.worst_image = self.images + int(worst.argmax())
        self.largest_value = max(self.largest_value, float(np.abs(wanted).max(initial=0.0)))
        self.squared_error += float(np.square(error).sum())
        self.squared_value += float(np.square(wanted.astype(np.float64)).sum())
        self.cosine = min(self.cosine, _lowest_cosine(wanted, got))
        self.images += len(wanted)
        if self.name in _CLASS_SCORES:
            self.add_decisions(wanted.argmax(1), got.argmax(1))
            if wanted.ndim == 4:
                self.label_maps = self.label_maps or _LabelMaps(wanted.shape[1])
                self.label_maps.add(wanted.argmax(1), got.argmax(1))

    def add_decisions(self, wanted: np.ndarray, got: np.ndarray) -> None:
        self.same += int((wanted == got).sum())
        self.decisions += wanted.size

    def add_overlaps(self, overlaps: np.ndarray) -> None:
        self.overlaps += overlaps.ravel().tolist()

    def agreement(self, bound: Tolerance) -> OutputAgreement:
        relative = self.largest_error / max(self.largest_value, 1e-12)
        top1 = self.same / self.decisions if self.decisions else None
        iou = float(np.mean(self.overlaps)) if self.overlaps else None
        if self.label_maps is not None:
            iou = self.label_maps.mean_iou()
        passed = (
            np.isfinite(self.largest_error)
            and (bound.relative is None or relative <= bound.relative)
            and self.cosine >= bound.cosine
            and (top1 is None or top1 >= bound.top1)
            and (iou is None or iou >= bound.iou)
        )
        return OutputAgreement(
            name=self.name,
            max_abs_error=self.largest_error,
            relative_error=relative,
            rms_error=(self.squared_error / max(self.squared_value, 1e-24)) ** 0.5,
            cosine=self.cosine,
            top1=top1,
            iou=iou,
            worst_image=self.worst_image,
            passed=bool(passed),
        )


class _LabelMaps:
    """Overlap of two label maps, class by class."""

    def __init__(self, classes: int) -> None:
        self.both = np.zeros(classes, np.int64)
        self.either = np.zeros(classes, np.int64)

    def add(self, wanted: np.ndarray, got: np.ndarray) -> None:
        count = len(self.both)
        both = np.bincount(wanted[wanted == got].ravel(), minlength=count)
        self.both += both
        self.either += np.bincount(wanted.ravel(), minlength=count)
        self.either += np.bincount(got.ravel(), minlength=count) - both

    def mean_iou(self) -> float:
        """Mean over the classes that either side sees anywhere."""
        seen = self.either > 0
        return float((self.both[seen] / self.either[seen]).mean())


def _lowest_cosine(wanted: np.ndarray, got: np.ndarray) -> float:
    a = wanted.reshape(len(wanted), -1).astype(np.float64)
    b = np.nan_to_num(got.reshape(len(got), -1).astype(np.float64), posinf=0.0, neginf=0.0)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    cosines = np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.maximum(norms, 1e-30))
    return float(cosines.min(initial=1.0))


def _confident_anchors(scores: np.ndarray) -> np.ndarray:
    """Indices [B, n] of the anchors with the highest scores; scores f32[B, A, K]."""
    best = scores.max(axis=-1)
    return np.argsort(-best, axis=1, kind="stable")[:, :_CONFIDENT]


def _at(values: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """[B, A, X] at anchors [B, n] -> [B, n, X]"""
    return np.take_along_axis(values, anchors[..., None], axis=1)


def _box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes (x1, y1, x2, y2), pair by pair: [..., 4] -> [...]"""
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(box[..., 2:] - box[..., :2], 0, None).prod(-1) for box in (a, b)]
    return both / np.maximum(areas[0] + areas[1] - both, 1e-9)
