"""How certain a score on n images is: its interval, and whether it beats its baseline.

Plain data, no torch: the same figures go into JSON, tables and the report.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from hgkd_edge.cells import counted
from hgkd_edge.score_records import Baseline, Interval, TaskIntervals, TaskScores

__all__ = [
    "BOOTSTRAP",
    "METHOD",
    "mean_interval",
    "not_better",
    "score_intervals",
    "task_baseline",
    "wilson",
]

METHOD = "Wilson score interval, 95 %"
BOOTSTRAP = "bootstrap over images, 95 %"
Z = 1.959964  # two-sided 95 % of a normal distribution


def wilson(share: float, count: int) -> Interval:
    """The 95 % interval of a share of `count` images (Wilson 1927); (0, 1) for no images."""
    if not count:
        return 0.0, 1.0
    shrink = 1 + Z * Z / count
    middle = (share + Z * Z / (2 * count)) / shrink
    half = Z / shrink * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    # At 0 and 1 rounding would exclude the share itself.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def mean_interval(values: Sequence[float]) -> Interval | None:
    """The 95 % interval of a mean over images (normal); None for fewer than two images."""
    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    half = Z * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def score_intervals(scores: TaskScores, classes: Sequence[str]) -> TaskIntervals:
    """Intervals of the scores of a task.

    Accuracies are shares of images, those of a class of the images of that class. Other tasks
    compute their intervals themselves.

    Args:
        scores: As a task's `judge` returns them.
        classes: Class names in the order of the confusion's rows.
    """
    if scores.top1 is None:
        return scores.intervals
    counts = scores.class_counts or [sum(row) for row in scores.confusion]
    found = TaskIntervals(top1=wilson(scores.top1, sum(counts)))
    if scores.top5 is not None:
        found.top5 = wilson(scores.top5, sum(counts))
    found.per_class = {
        name: wilson(scores.per_class[name], count)
        for name, count in zip(classes, counts, strict=True)
        if name in scores.per_class
    }
    return found


def task_baseline(task: str, scores: TaskScores, majority: float, *, count: int) -> Baseline:
    """The score of a model that has learned nothing.

    For multi-label classification, the expected average precision of a random order: the share of
    the images that have the label, as a mean over the classes.

    Args:
        task: `classify`, `multilabel`, `segment` or `detect`.
        scores: As its `judge` returns them.
        majority: Classification: the share of the training images' most frequent class.
        count: Number of images that were scored.
    """
    if task == "classify":
        return Baseline(name="majority class", score=majority)
    if task == "segment":
        truth = [sum(row) for row in scores.confusion]
        present = sum(count > 0 for count in truth)
        iou = max(truth) / max(1, sum(truth)) / max(1, present)
        return Baseline(name="most frequent class everywhere", score=iou)
    if task == "multilabel":
        shares = [label.images / count for label in scores.per_label.values() if label.images]
        return Baseline(name="random order", score=sum(shares) / max(1, len(shares)))
    return Baseline(name="no boxes at all", score=0.0)


def not_better(
    what: str,
    score: float,
    baseline: Baseline,
    *,
    interval: Interval | None = None,
    count: int,
) -> str:
    """A one-line warning when a score does not beat its baseline; '' when it does.

    Args:
        what: Display name of the score.
        score: In [0, 1].
        baseline: What it is compared with.
        interval: Interval of the score; a baseline inside it may be as good.
        count: Images.
    """
    other = baseline.score
    low, high = interval or (score, score)
    if low > other:
        return ""
    shown = f"{100 * score:.1f} % on {counted(count, 'image')}"
    if interval:
        shown += f" (95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
    verdict = "is not better than" if score <= other else "is too close to tell from"
    return f"{what} {shown} {verdict} the baseline: {baseline.name}, {100 * other:.1f} %"
