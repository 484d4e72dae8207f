"""The content of `finetune.json` and `evaluation.json`: scores, their intervals and baselines."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pydantic import Field

from hgkd_edge.records import Record, RunRecord

__all__ = [
    "Baseline",
    "EvaluationRecord",
    "FeatureIntervals",
    "FeatureRanges",
    "FeatureRecord",
    "FeatureScores",
    "FinetuneRecord",
    "Interval",
    "LabelScores",
    "ScoreRecord",
    "TaskIntervals",
    "TaskRecord",
    "TaskScores",
]

Interval = tuple[float, float]  # 95 %: low and high


class ScoreRecord(RunRecord, ABC):
    """Scores on a split.

    Attributes:
        split: Name of the split.
        intervals: In the shape of the scores.
        interval_method: How they were computed; None where there are none.
        warnings: No gain over a baseline, classes without training images.
    """

    split: str = ""
    intervals: Record = Field(default_factory=Record)
    interval_method: str | None = None
    warnings: list[str] = Field(default_factory=list)

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of images that were scored."""


class FeatureScores(Record):
    """Top-1 accuracies in [0, 1] of one network's frozen features."""

    knn: float
    linear_probe: float


class FeatureRanges(Record):
    """The intervals of `FeatureScores`."""

    knn: Interval | None = None
    linear_probe: Interval | None = None


class FeatureIntervals(Record):
    """The intervals of both networks, and that of the majority class."""

    distilled: FeatureRanges = Field(default_factory=FeatureRanges)
    untrained: FeatureRanges = Field(default_factory=FeatureRanges)
    majority: Interval | None = None


class FeatureRecord(ScoreRecord):
    """Scores of a backbone's features; `photos` are numbers of images by split."""

    intervals: FeatureIntervals = Field(default_factory=FeatureIntervals)
    photos: dict[str, int]
    distilled: FeatureScores
    untrained: FeatureScores
    majority: float

    @property
    def count(self) -> int:
        return self.photos[self.split]


class Baseline(Record):
    """The score, in [0, 1], of a model that has learned nothing."""

    name: str
    score: float


class TaskIntervals(Record):
    """The intervals of `TaskScores`, as far as they are known."""

    top1: Interval | None = None
    top5: Interval | None = None
    miou: Interval | None = None
    map: Interval | None = None
    map50: Interval | None = None
    mean_ap: Interval | None = None
    micro_f1: Interval | None = None
    macro_f1: Interval | None = None
    per_class: dict[str, Interval] = Field(default_factory=dict)

    @property
    def single(self) -> dict[str, Interval]:
        """The intervals of scores that are one number."""
        return {name: value for name, value in self if isinstance(value, tuple)}


class LabelScores(Record):
    """Multi-label scores of one class, in [0, 1]; `images` is the number of images with its label.

    `average_precision` is None for a class that no image has.
    """

    images: int
    average_precision: float | None = None
    precision: float
    recall: float
    f1: float


class TaskScores(Record):
    """Scores in [0, 1] of a model for a task; each task sets its own.

    Attributes:
        top1: Classification: share of the images whose most probable class is the true one.
        top5: Classification: share of the images with the true class among the first five.
        mean_class: Classification: mean accuracy of the classes.
        miou: Segmentation: mean intersection over union of the classes.
        pixel_accuracy: Segmentation: share of the pixels with the true class.
        map: Detection: COCO's mean average precision over IoU .5 to .95.
        map50: Detection: the same at IoU .5.
        mean_ap: Multi-label classification: mean average precision of the classes.
        micro_f1: Multi-label classification: F1 of all decisions at the threshold.
        macro_f1: Multi-label classification: mean F1 of the classes at the threshold.
        per_class: By class: accuracy, intersection over union, or average precision.
        per_label: Multi-label classification: all scores of each class.
        confusion: Numbers of images or pixels, [true, predicted]; empty for very many classes.
        mistakes: Classification of very many classes: the most frequent ones, as true class,
            predicted class and number of images.
        class_counts: Classification of very many classes: number of images of each.
        intervals: Those that the task computes itself.
        pictures: Image files for visual inspection.
        ignored_pixels: Segmentation: share of the pixels without a class.
    """

    top1: float | None = None
    top5: float | None = None
    mean_class: float | None = None
    miou: float | None = None
    pixel_accuracy: float | None = None
    map: float | None = None
    map50: float | None = None
    mean_ap: float | None = None
    micro_f1: float | None = None
    macro_f1: float | None = None
    per_class: dict[str, float] = Field(default_factory=dict)
    per_label: dict[str, LabelScores] = Field(default_factory=dict)
    confusion: list[list[int]] = Field(default_factory=list)
    mistakes: list[tuple[int, int, int]] = Field(default_factory=list)
    class_counts: list[int] = Field(default_factory=list)
    intervals: TaskIntervals = Field(default_factory=TaskIntervals)
    pictures: list[str] = Field(default_factory=list)
    ignored_pixels: float | None = None

    @property
    def single(self) -> dict[str, float]:
        """The scores that are one number."""
        return {name: value for name, value in self if isinstance(value, float)}


class TaskRecord(ScoreRecord):
    """Scores of a model for a task; `scores` is None where no labeled images were held out.

    `metric` names the main score.
    """

    intervals: TaskIntervals = Field(default_factory=TaskIntervals)
    task: str = ""
    metric: str = ""
    photos: int = 0
    scores: TaskScores | None = None
    baseline: Baseline | None = None

    @property
    def count(self) -> int:
        return self.photos

    @property
    def single(self) -> dict[str, float]:
        """The scores that are one number."""
        return self.scores.single if self.scores is not None else {}

    @property
    def per_class(self) -> dict[str, float]:
        """The score of each class; empty where the task has none."""
        return self.scores.per_class if self.scores is not None else {}


class FinetuneRecord(TaskRecord):
    """What a fine-tuning left; `int8_score` is the metric with INT8 simulated."""

    init: str = ""
    model: str = ""
    card: str = ""
    int8_score: float | None = None


class EvaluationRecord(TaskRecord):
    """Scores of a model file in a runtime; `sha256` is the network's digest."""

    model: str = ""
    sha256: str | None = None
    runtime: str = ""
    fingerprint: str = ""
