"""Scores of a multi-label classification: average precision and F1 of each class, and their means.

No torch. Average precision is the sum of precision times the gain in recall over all thresholds, as
in scikit-learn and torchmetrics; images with equal scores enter at the same threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hgkd_edge.score_records import LabelScores, TaskIntervals, TaskScores
from hgkd_edge.tasks.precision_bootstrap import resamples

__all__ = ["score_labels"]


def score_labels(
    logits: np.ndarray, decided: np.ndarray, truth: np.ndarray, classes: Sequence[str]
) -> TaskScores:
    """`mean_ap`, `micro_f1`, `macro_f1`, `per_class` average precision and `per_label`.

    Classes that no image has are skipped in the means. `intervals` are 95 % percentile intervals of
    a bootstrap over the images (Efron 1979).

    Args:
        logits: Higher is more probable, float [n, K].
        decided: Labels at the threshold, bool [n, K].
        truth: True labels, bool [n, K].
        classes: K class names.
    """
    ranking, counts = _Ranking(logits, truth), _Counts(decided, truth)
    once = np.ones(len(truth))
    average, (precision, recall, f1) = ranking.precisions(once), counts.rates(once)
    mean_ap, micro, macro = _means(average, counts, once)
    images = truth.sum(axis=0)
    scores = TaskScores(mean_ap=mean_ap, micro_f1=micro, macro_f1=macro)
    scores.per_class = {
        name: float(value) for name, value, n in zip(classes, average, images, strict=True) if n
    }
    scores.per_label = {
        name: LabelScores(
            images=int(images[i]),
            average_precision=scores.per_class.get(name),
            precision=float(precision[i]),
            recall=float(recall[i]),
            f1=float(f1[i]),
        )
        for i, name in enumerate(classes)
    }
    scores.intervals = _intervals(ranking, counts)
    return scores


class _Ranking:
    """Images from the highest to the lowest score, for each class."""

    def __init__(self, scores: np.ndarray, truth: np.ndarray) -> None:
        self.order = np.argsort(-scores, axis=0, kind="stable")  # [n, K]
        ranked = np.take_along_axis(scores, self.order, axis=0)
        self.truth = np.take_along_axis(truth, self.order, axis=0)
        last = np.ones(ranked.shape, bool)  # of images with equal scores
        last[:-1] = ranked[1:] != ranked[:-1]
        rows = np.where(last, np.arange(len(ranked))[:, None], len(ranked))
        self.ends = np.minimum.accumulate(rows[::-1], axis=0)[::-1]

    def precisions(self, weights: np.ndarray) -> np.ndarray:
        """Average precision of each class [K], each image counted `weights` [n] times.

        NaN for classes that no image has.
        """
        counted = weights[self.order]  # [n, K]
        found = counted * self.truth
        hits, seen = found.cumsum(axis=0), counted.cumsum(axis=0)
        precision = np.take_along_axis(hits / np.maximum(seen, 1), self.ends, axis=0)
        total = hits[-1]
        mean: np.ndarray = (precision * found).sum(axis=0) / np.maximum(total, 1)
        return np.where(total > 0, mean, np.nan)


class _Counts:
    """Right and wrong decisions."""

    def __init__(self, decided: np.ndarray, truth: np.ndarray) -> None:
        self.decided, self.truth = decided.astype(float), truth.astype(float)  # [n, K]
        self.right = self.decided * self.truth

    def rates(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Precision, recall and F1 of each class, [K] each; 0 where nothing was decided or true."""
        right, decided, true = (weights @ part for part in (self.right, self.decided, self.truth))
        return (
            right / np.maximum(decided, 1),
            right / np.maximum(true, 1),
            2 * right / np.maximum(decided + true, 1),
        )

    def micro_f1(self, weights: np.ndarray) -> float:
        """F1 of all decisions together."""
        right, decided, true = (weights @ part for part in (self.right, self.decided, self.truth))
        return float(2 * right.sum() / max(1.0, (decided + true).sum()))


def _means(average: np.ndarray, counts: _Counts, weights: np.ndarray) -> tuple[float, float, float]:
    """`mean_ap`, `micro_f1` and `macro_f1`; 0 where no class has an image."""
    seen = ~np.isnan(average)
    if not seen.any():
        return 0.0, 0.0, 0.0
    f1 = counts.rates(weights)[2]
    return float(average[seen].mean()), counts.micro_f1(weights), float(f1[seen].mean())


def _intervals(ranking: _Ranking, counts: _Counts) -> TaskIntervals:
    images, classes = counts.truth.shape
    if images < 2:
        return TaskIntervals()
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(resamples(images * classes)):
        weights = np.bincount(rng.integers(0, images, images), minlength=images).astype(float)
        drawn.append(_means(ranking.precisions(weights), counts, weights))
    low, high = np.percentile(np.array(drawn), [2.5, 97.5], axis=0).tolist()  # [3] each
    mean_ap, micro_f1, macro_f1 = zip(low, high, strict=True)
    return TaskIntervals(mean_ap=mean_ap, micro_f1=micro_f1, macro_f1=macro_f1)
