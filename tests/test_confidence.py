"""Intervals and baselines of scores on n images."""

from __future__ import annotations

import pytest

from hgkd_edge.confidence import (
    mean_interval,
    not_better,
    score_intervals,
    task_baseline,
    wilson,
)
from hgkd_edge.score_records import Baseline, TaskIntervals, TaskScores


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    [
        (0.5, 100, 0.4038, 0.5962),
        (0.0, 10, 0.0, 0.2775),
        (1.0, 10, 0.7225, 1.0),
        (14 / 60, 60, 0.1444, 0.3544),
    ],
)
def test_the_interval_is_wilsons(share: float, count: int, low: float, high: float) -> None:
    """Published values: 50 of 100 and 0 of 10, Newcombe 1998."""
    assert wilson(share, count) == pytest.approx((low, high), abs=1e-4)


def test_no_images_say_nothing() -> None:
    assert wilson(0.0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_more_images_make_it_narrower_around_the_score(share: float) -> None:
    widths = []
    for count in (10, 100, 1000):
        low, high = wilson(share, count)
        assert 0 <= low <= share <= high <= 1
        widths.append(high - low)

    assert widths == sorted(widths, reverse=True)


def test_the_interval_of_a_mean_shrinks_with_the_root_of_n() -> None:
    few, many = ([0.0, 1.0] * n for n in (50, 5000))

    assert mean_interval(few) == pytest.approx((0.4015, 0.5985), abs=1e-3)
    assert mean_interval(many) == pytest.approx((0.49, 0.51), abs=1e-3)
    assert mean_interval([3.0]) is None


def test_only_shares_of_images_carry_an_interval_and_classes_count_their_own() -> None:
    scores = TaskScores(
        top1=0.5,
        mean_class=0.6,
        per_class={"a": 0.25, "c": 1.0},
        confusion=[[1, 3, 0], [0, 0, 0], [0, 0, 2]],
    )

    found = score_intervals(scores, ("a", "b", "c"))

    assert found.top1 == wilson(0.5, 6)
    assert found.per_class == {"a": wilson(0.25, 4), "c": wilson(1.0, 2)}
    assert found.single.keys() == {"top1"}
    assert score_intervals(TaskScores(map=0.5), ("a",)) == TaskIntervals()
    brought = TaskIntervals(miou=(0.4, 0.6))
    assert score_intervals(TaskScores(miou=0.5, intervals=brought), ("a",)) == brought


@pytest.mark.parametrize(
    ("score", "interval", "expected"),
    [
        (0.233, (0.144, 0.354), "is not better than the baseline: untrained, 33.3 %"),
        (0.40, (0.286, 0.526), "is too close to tell from the baseline: untrained, 33.3 %"),
        (0.60, (0.474, 0.714), ""),
        (0.333, None, "is not better than"),
        (0.334, None, ""),
    ],
)
def test_a_score_that_does_not_beat_its_baseline_says_so(
    score: float, interval: tuple[float, float] | None, expected: str
) -> None:
    baseline = Baseline(name="untrained", score=0.333)
    line = not_better("linear probe", score, baseline, interval=interval, count=60)

    assert expected in line
    assert bool(line) == bool(expected)
    assert not line or "on 60 images" in line


def test_what_has_learned_nothing_still_scores_on_lopsided_data() -> None:
    background = TaskScores(confusion=[[80, 10], [10, 0]])

    majority = task_baseline("classify", TaskScores(), 0.7, count=10)
    assert majority == Baseline(name="majority class", score=0.7)
    assert task_baseline("segment", background, 0.0, count=10).score == pytest.approx(0.45)
    assert task_baseline("detect", TaskScores(), 0.0, count=10).score == 0
