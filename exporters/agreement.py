"""Measure how well two sets of outputs agree, and check the figures against bounds.

Numbers (largest error, cosine) are compared for every output. Decisions are compared where an
output holds some: the best class of `logits` or `probabilities` ([B, K], or per pixel [B, K, H, W],
there also as IoU of the two label maps), each label of `label_logits` or `label_probabilities`
[B, K], and of a detector's `boxes` [B, A, 4] and `scores` [B, A, K] its most confident anchors.
Outputs that are already decisions (`classes` [B, H, W], `detections`
[M, 7], as `exporters.bake` makes them) are compared only as decisions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .errors import ExportError, VerificationFailed
from .tolerances import Tolerance

__all__ = ["Comparison", "OutputAgreement"]

_CLASS_SCORES = ("logits", "probabilities")
# Labels by themselves: the score at which a label is as likely as not.
_LABEL_SCORES = {"label_logits": 0.0, "label_probabilities": 0.5}
_DECIDED = ("classes", "detections")
_CONFIDENT = 10  # anchors of an image whose boxes and classes are looked at


_FEWEST = 4  # images that a spread is taken from
_FAINT = 0.05  # of the typical image's norm: below it, an output has no direction
_STILL = 0.02  # of the typical image's norm: the least spread that errors are compared with
_ROUNDING = 1e-5  # of the largest value: classes closer than this are equal in fp32
# Values in [0, 1]: a largest error is compared with at least this, the least score ever looked at.
_LEAST_SCALE = {"scores": 0.05}
_CHANNEL_AXIS = {"boxes": -1, "scores": -1}  # of other outputs: 1


@dataclass(frozen=True)
class OutputAgreement:
    """The agreement of one output.

    Errors and cosine are None where the output is a decision, `top1` and `iou` where it holds none.
    `noise`, `worst` and `shift` are None as well where the images are too few for a spread. `kept`
    is `top1` with changes between tied classes counted as kept. `worst_image` is the index of the
    image with the largest error.
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
    kept: float | None = None
    noise: float | None = None
    worst: float | None = None
    shift: float | None = None


class Comparison:
    """Running figures of all outputs over batches, so that feature maps are not kept in memory."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sums] = {}

    def add(self, wanted: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]) -> None:
        """Add the two sides' outputs, [B, ...] each, for the same B images.

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
            self._sums["scores"].add_decisions(
                _at(wanted["scores"], anchors), _at(got["scores"], anchors), axis=-1
            )
            self._sums["boxes"].add_overlaps(
                _box_iou(_at(wanted["boxes"], anchors), _at(got["boxes"], anchors))
            )

    def agreements(self, bound: Tolerance) -> tuple[OutputAgreement, ...]:
        """Every output's figures, checked against the bounds."""
        return tuple(sums.agreement(bound) for sums in self._sums.values())


class _Sums:
    """Running figures of one output."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.largest_error = self.largest_value = 0.0
        self.squared_value = 0.0
        self.errors: list[np.ndarray] = []  # squared, of every image
        self.norms: list[np.ndarray] = []  # of every image
        self.cosines: list[np.ndarray] = []
        self.channel_sums: np.ndarray | float = 0.0  # [C]
        self.channel_errors: np.ndarray | float = 0.0  # [C], signed
        self.per_channel = 0  # values that each of them is the sum of
        self.images = self.worst_image = 0
        self.same = self.decisions = 0
        self.margins: list[np.ndarray] = []  # in the reference, of decisions that changed
        self.moves: list[np.ndarray] = []  # [2, n], the classes before and after, of the same
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
        self.add_values(wanted.astype(np.float64), got)
        if self.name in _CLASS_SCORES:
            chosen = self.add_decisions(wanted, got, axis=1)
            if wanted.ndim == 4:
                self.label_maps.add(wanted.argmax(1), chosen)
        if (middle := _LABEL_SCORES.get(self.name)) is not None:  # each label against its absence
            first, second = (np.stack([np.full_like(x, middle), x], -1) for x in (wanted, got))
            self.add_decisions(first, second, axis=-1)

    def add_values(self, wanted: np.ndarray, got: np.ndarray) -> None:
        # A non-finite candidate counts as an infinite error: comparisons with NaN would hide it.
        signed = np.where(np.isfinite(got), got.astype(np.float64) - wanted, np.inf)
        error = np.abs(signed)
        worst = error.reshape(len(error), -1).max(axis=1, initial=0.0)  # [B]
        if worst.max() > self.largest_error:
            self.largest_error = float(worst.max())
            self.worst_image = self.images + int(worst.argmax())
        self.largest_value = max(self.largest_value, float(np.abs(wanted).max(initial=0.0)))
        self.errors.append(np.square(error).reshape(len(error), -1).sum(axis=1))
        self.norms.append(np.linalg.norm(wanted.reshape(len(wanted), -1), axis=1))
        self.cosines.append(_cosines(wanted, got))
        self.squared_value += float(np.square(wanted).sum())
        axis = _CHANNEL_AXIS.get(self.name, 1)
        channels = _by_channel(wanted, axis)  # [C, n]
        self.channel_errors = self.channel_errors + _by_channel(signed, axis).sum(axis=1)
        self.channel_sums = self.channel_sums + channels.sum(axis=1)
        self.per_channel += channels.shape[1]
        self.images += len(wanted)

    def add_decisions(self, wanted: np.ndarray, got: np.ndarray, *, axis: int) -> np.ndarray:
        """Compare best classes; returns the candidate's, equal in fp32 counted as the same."""
        first, second = wanted.argmax(axis), np.nan_to_num(got, nan=-np.inf).argmax(axis)
        margins = _take(wanted, first, axis) - _take(wanted, second, axis)
        second = np.where(margins <= _ROUNDING * np.abs(wanted).max(initial=0.0), first, second)
        self.same += int((first == second).sum())
        self.decisions += first.size
        changed = first != second
        self.margins.append(margins[changed])
        self.moves.append(np.stack([first[changed], second[changed]]))
        return second

    def add_label_maps(self, wanted: np.ndarray, got: np.ndarray) -> None:
        self.same += int((wanted == got).sum())
        self.decisions += wanted.size
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
        kept = self.kept(bound.tie)
        iou = float(np.mean(self.overlaps)) if self.overlaps else self.label_maps.mean_iou()
        passed = (kept is None or kept >= bound.top1) and (iou is None or iou >= bound.iou)
        if self.name in _DECIDED:
            return OutputAgreement(self.name, None, None, None, None, top1, iou, 0, passed, kept)
        relative = self.largest_error / max(self.largest_value, _LEAST_SCALE.get(self.name, 1e-12))
        errors, spread = np.concatenate(self.errors), self.spread()
        noise = float(np.sqrt(errors.mean()) / spread) if spread else None
        worst = float(np.sqrt(errors.max()) / spread) if spread else None
        shift = self.shift() / spread if spread else None
        cosine = self.cosine()
        passed &= np.isfinite(self.largest_error)
        passed &= bound.relative is None or relative <= bound.relative
        if bound.noise is None or noise is None:
            passed &= cosine >= bound.cosine
        else:
            passed &= noise <= bound.noise
        passed &= bound.worst is None or worst is None or worst <= bound.worst
        passed &= bound.shift is None or shift is None or shift <= bound.shift
        return OutputAgreement(
            name=self.name,
            max_abs_error=self.largest_error,
            relative_error=relative,
            rms_error=float(errors.sum() / max(self.squared_value, 1e-24)) ** 0.5,
            cosine=cosine,
            top1=top1,
            iou=iou,
            worst_image=self.worst_image,
            passed=bool(passed),
            kept=kept,
            noise=noise,
            worst=worst,
            shift=shift,
        )

    def spread(self) -> float | None:
        """Root mean square distance of an image's values from their channel's mean.

        None for too few images. A network whose outputs hardly vary is compared by their size.
        """
        if self.images < _FEWEST:
            return None
        means = np.asarray(self.channel_sums) / self.per_channel
        departing = max(0.0, self.squared_value - self.per_channel * float(np.square(means).sum()))
        still = _STILL * np.sqrt(self.squared_value / self.images)
        return max(float(np.sqrt(departing / (self.images - 1))), still, 1e-12)

    def shift(self) -> float:
        """Root of the squares of the error that all images have in common, as in `noise`."""
        means = np.asarray(self.channel_errors) / self.per_channel
        return float(np.sqrt(self.per_channel / self.images * np.square(means).sum()))

    def kept(self, tie: float) -> float | None:
        """Share of decisions that stayed, those between tied classes included."""
        if not self.decisions:
            return None
        changed = self.decisions - self.same
        spread = self.spread() if self.margins else None
        if changed and spread:
            values = self.per_channel * np.size(self.channel_sums) / self.images  # of an image
            least = tie * spread / np.sqrt(values)
            clear = np.concatenate(self.margins) > least
            ties = np.concatenate(self.moves, axis=1)[:, ~clear]
            changed = int(clear.sum()) + _one_way(ties)
        return 1 - changed / self.decisions

    def cosine(self) -> float:
        """The lowest of all images whose outputs have a direction."""
        norms = np.concatenate(self.norms)
        typical = float(np.sqrt(np.square(norms).mean()))
        return float(np.concatenate(self.cosines)[norms >= _FAINT * typical].min(initial=1.0))


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


def _cosines(wanted: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Cosine similarity of every image's values, [B]; 1 where both sides are zero."""
    a = wanted.reshape(len(wanted), -1)
    b = np.nan_to_num(got.reshape(len(got), -1).astype(np.float64), posinf=0.0, neginf=0.0)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    cosines: np.ndarray = np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.maximum(norms, 1e-30))
    return cosines


def _by_channel(values: np.ndarray, axis: int) -> np.ndarray:
    """[B, ...] -> [C, n], C along `axis`; one channel where there is no such axis."""
    if values.ndim < 2:
        return values.reshape(1, -1)
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _take(values: np.ndarray, chosen: np.ndarray, axis: int) -> np.ndarray:
    """The value of the chosen class, of every decision."""
    return np.take_along_axis(values, np.expand_dims(chosen, axis), axis).squeeze(axis)


def _one_way(moves: np.ndarray) -> int:
    """How many changes [2, n] add up, because a class wins or loses more often than by chance.

    Rounding moves as many decisions to a class as away from it, within three standard deviations.
    """
    lost, won = (np.bincount(side, minlength=moves.max(initial=0) + 1) for side in moves)
    net = np.where(np.abs(won - lost) > 3 * np.sqrt(won + lost), won - lost, 0)
    return int(max(net[net > 0].sum(), -net[net < 0].sum()))


def _confident_anchors(scores: np.ndarray) -> np.ndarray:
    """Indices [B, n] of the anchors with the highest scores; scores f32[B, A, K]."""
    best = scores.max(axis=-1)
    return np.argsort(-best, axis=1, kind="stable")[:, :_CONFIDENT]


def _at(values: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """[B, A, X] at anchors [B, n] -> [B, n, X]"""
    return np.take_along_axis(values, anchors[..., None], axis=1)


def _box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes (x1, y1, x2, y2), pair by pair: [..., 4] -> [...]

    Sides are taken as at least one pixel: the overlap of boxes without an area is rounding.
    """
    a, b = (np.concatenate([box[..., :2], np.maximum(box[..., 2:], box[..., :2] + 1)], -1)
            for box in (a, b))  # fmt: skip
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b)]
    overlap: np.ndarray = both / (areas[0] + areas[1] - both)
    return overlap
