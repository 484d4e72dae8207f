from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.detection import MeanAveragePrecision

from hgkd_edge.score_records import TaskIntervals
from hgkd_edge.tasks import precision_bootstrap
from hgkd_edge.tasks.precision_bootstrap import ScoredImage, precision_intervals


def scored(images: int, *, hit: float, seed: int = 0) -> list[ScoredImage]:
    """Images with two true boxes, each found nearly where it is with probability `hit`."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(images):
        corner = rng.uniform(0, 60, (2, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(15, 30, (2, 2))], 1)
        labels = rng.integers(0, 3, 2)
        truth = np.column_stack([labels, boxes])
        moved = boxes + np.where(rng.random((2, 1)) < hit, rng.normal(0, 1.5, (2, 4)), 200)
        made.append(ScoredImage(truth, moved, labels, rng.uniform(0.1, 1, 2)))
    return made


def reference(images: list[ScoredImage]) -> dict[str, torch.Tensor]:
    metric = MeanAveragePrecision(backend="pycocotools")
    metric.update(
        [
            {
                "boxes": torch.from_numpy(i.boxes),
                "labels": torch.from_numpy(i.labels),
                "scores": torch.from_numpy(i.scores),
            }
            for i in images
        ],
        [
            {
                "boxes": torch.from_numpy(i.truth[:, 1:]),
                "labels": torch.from_numpy(i.truth[:, 0]).long(),
            }
            for i in images
        ],
    )
    return metric.compute()


def test_all_images_once_give_the_average_precision_itself() -> None:
    images = scored(40, hit=0.7)

    found = precision_bootstrap._precision(precision_bootstrap._matched(images, 3))

    wanted = reference(images)
    assert found == pytest.approx((wanted["map"].item(), wanted["map_50"].item()), abs=1e-6)


def test_intervals_hold_the_score_and_narrow_with_more_images() -> None:
    widths = []
    for count in (20, 320):
        images = scored(count, hit=0.7)
        low, high = precision_intervals(images, 3).map

        assert low < reference(images)["map"].item() < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2  # a quarter, where one over the root of the count holds


def test_intervals_cover_the_true_score_about_as_often_as_they_say() -> None:
    true = reference(scored(1500, hit=0.7, seed=99))["map_50"].item()

    covered = 0
    for seed in range(20):
        low, high = precision_intervals(scored(60, hit=0.7, seed=seed), 3).map50
        covered += low <= true <= high

    assert covered >= 15


EMPTY = ScoredImage(np.zeros((0, 5)), np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))


@pytest.mark.parametrize("images", [[], scored(1, hit=1), [EMPTY] * 3])
def test_where_nothing_can_be_scored_there_is_no_interval(images: list[ScoredImage]) -> None:
    assert precision_intervals(images, 3) == TaskIntervals()


def test_a_detector_that_finds_nothing_has_an_interval_at_zero() -> None:
    empty = np.zeros((0, 4)), np.zeros(0, int), np.zeros(0)
    images = [ScoredImage(image.truth, *empty) for image in scored(10, hit=1)]

    assert precision_intervals(images, 3) == TaskIntervals(map=(0.0, 0.0), map50=(0.0, 0.0))
