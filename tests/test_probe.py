from __future__ import annotations

import pytest
import torch

from hgkd_edge.probe import knn_top1, linear_probe_top1, majority_top1


def clouds(spread: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four Gaussian clouds in 16 dimensions: train and test points with labels."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 16, generator=generator)
    labels = torch.arange(400) % 4
    points = centres[labels] + spread * torch.randn(400, 16, generator=generator)
    return points[:300], labels[:300], points[300:], labels[300:]


@pytest.mark.parametrize("score", [knn_top1, linear_probe_top1])
def test_separable_features_score_high_and_noise_scores_chance(score) -> None:  # type: ignore[no-untyped-def]
    assert score(*clouds(spread=0.3), classes=4) > 0.97
    assert score(*clouds(spread=100.0), classes=4) < 0.4


@pytest.mark.parametrize("score", [knn_top1, linear_probe_top1])
def test_scores_do_not_look_at_test_labels(score) -> None:  # type: ignore[no-untyped-def]
    train_x, train_y, test_x, test_y = clouds(spread=0.3)

    wrong = score(train_x, train_y, test_x, (test_y + 1) % 4, classes=4)

    assert wrong < 0.03


def test_the_probe_does_not_mind_the_scale_of_features() -> None:
    train_x, train_y, test_x, test_y = clouds(spread=1.0)
    scale = torch.logspace(-3, 3, 16)

    plain = linear_probe_top1(train_x, train_y, test_x, test_y, classes=4)
    scaled = linear_probe_top1(train_x * scale, train_y, test_x * scale, test_y, classes=4)

    assert abs(plain - scaled) < 0.03


def test_the_majority_is_that_of_the_training_photos() -> None:
    assert majority_top1(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 0, 1])) == 0.25
