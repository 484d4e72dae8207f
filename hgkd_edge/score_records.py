"""The content of `finetune.json` and `evaluation.json`: scores, their intervals and baselines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from pydantic import Field

from hgkd_edge.records import Record, RunRecord

__all__ = [
    "Baseline",
    "EvaluationRecord",
    "FeatureRecord",
    "FeatureScores",
    "FinetuneRecord",
    "ScoreRecord",
    "TaskRecord",
]


class ScoreRecord(RunRecord, ABC):
    """Scores on a split.

    Attributes:
        split: Name of the split.
        intervals: 95 % intervals by name, in the shape of the scores.
        interval_method: How they were computed; None where there are none.
        warnings: No gain over a baseline, classes without training images.
    """

    split: str = ""
    intervals: dict[str, Any] = Field(default_factory=dict)
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


class FeatureRecord(ScoreRecord):
    """Scores of a backbone's features; `photos` are numbers of images by split."""

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


class TaskRecord(ScoreRecord):
    """Scores of a model for a task; without `scores` where no labeled images were held out.

    `scores` are by name, in [0, 1]; `metric` names the main one. `per_class`, `confusion` and
    `pictures` are among them where the task has them.
    """

    task: str = ""
    metric: str = ""
    photos: int = 0
    scores: dict[str, Any] = Field(default_factory=dict)
    baseline: Baseline | None = None

    @property
    def count(self) -> int:
        return self.photos

    @property
    def single(self) -> dict[str, float]:
        """The scores that are one number."""
        return {name: value for name, value in self.scores.items() if isinstance(value, float)}

    @property
    def per_class(self) -> dict[str, float]:
        """The score of each class; empty where the task has none."""
        return self.scores.get("per_class", {})


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
