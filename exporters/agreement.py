"""How well two sets of outputs agree, in figures and against bounds.

Numbers (largest error, cosine) are looked at for every output; decisions where an output holds
some: the best class of `logits` or `probabilities` ([B, K], or per pixel [B, K, H, W], there also
as IoU of the two label maps), and of a detector's `boxes` [B, A, 4] and `scores` [B, A, K] what its
most confident anchors say. Outputs that are decisions already (`classes` [B, H, W], `detections`
[M, 7], as `exporters.bake` makes them) are compared as such alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .errors import ExportError, VerificationFailed

__all__ = ["TOLERANCES", "Comparison", "OutputAgreement", "Tolerance"]

_CLASS_SCORES = ("logits", "probabilities")
_DECIDED = ("classes", "detections")
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

    Errors and cosine are None where the output is a decision, `top1` and `iou` where it holds none;
    `worst_image` is the index of the image with the largest error.
    """

    name: str
    max_abs_error: float | None
    relative_error: float | None
    rms_error: float | None
    cosine: float | None
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
            sums = self._sums.setdefault(name, _Sums(name))
            if name == "detections":
                sums.add_detections(values, got[name])
            else:
                sums.add(values, got[name])
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
        self.label_maps = _LabelMaps()

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
        if self.name == "classes":
            self.add_label_maps(wanted.astype(np.int64), got.astype(np.int64))
            return
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
            if wanted.ndim == 4:
                self.add_label_maps(wanted.argmax(1), got.argmax(1))
            else:
                self.add_decisions(wanted.argmax(1), got.argmax(1))

    def add_decisions(self, wanted: np.ndarray, got: np.ndarray) -> None:
        self.same += int((wanted == got).sum())
        self.decisions += wanted.size

    def add_label_maps(self, wanted: np.ndarray, got: np.ndarray) -> None:
        self.add_decisions(wanted, got)
        self.label_maps.add(wanted, got)

    def add_detections(self, wanted: np.ndarray, got: np.ndarray) -> None:
        """Rows (image, x1, y1, x2, y2, score, class), each matched with the other side's best."""
        for mine, other in ((wanted, got), (got, wanted)):
            for row in mine:
                rivals = other[(other[:, 0] == row[0]) & (other[:, 6] == row[6])]
                best = float(_box_iou(row[1:5], rivals[:, 1:5]).max(initial=0.0))
                self.same += best > 0.5
                self.decisions += 1
                self.overlaps.append(best)

    def add_overlaps(self, overlaps: np.ndarray) -> None:
        self.overlaps += overlaps.ravel().tolist()

    def agreement(self, bound: Tolerance) -> OutputAgreement:
        top1 = self.same / self.decisions if self.decisions else None
        iou = float(np.mean(self.overlaps)) if self.overlaps else self.label_maps.mean_iou()
        passed = (top1 is None or top1 >= bound.top1) and (iou is None or iou >= bound.iou)
        if self.name in _DECIDED:
            return OutputAgreement(self.name, None, None, None, None, top1, iou, 0, passed)
        relative = self.largest_error / max(self.largest_value, 1e-12)
        passed &= np.isfinite(self.largest_error) and self.cosine >= bound.cosine
        passed &= bound.relative is None or relative <= bound.relative
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
    """Overlap of two label maps, class by class, over all images."""

    def __init__(self) -> None:
        self.both: Counter[int] = Counter()
        self.wanted: Counter[int] = Counter()
        self.got: Counter[int] = Counter()

    def add(self, wanted: np.ndarray, got: np.ndarray) -> None:
        for counts, labels in (
            (self.both, wanted[wanted == got]),
            (self.wanted, wanted),
            (self.got, got),
        ):
            counts.update(dict(enumerate(np.bincount(labels.ravel()).tolist())))

    def mean_iou(self) -> float | None:
        """Mean over the classes that either side sees anywhere; None without any map."""
        seen = [k for k in self.wanted | self.got if self.wanted[k] + self.got[k] > 0]
        if not seen:
            return None
        overlaps = [self.both[k] / (self.wanted[k] + self.got[k] - self.both[k]) for k in seen]
        return float(np.mean(overlaps))


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
