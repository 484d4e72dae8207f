from __future__ import annotations

import pytest
import torch

from hgkd_edge.distillation.held_out import BetweenImages
from hgkd_edge.knn_and_probe import knn_top1, linear_probe_top1, majority_top1


def clouds(spread: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four Gaussian clouds in 16 dimensions: train and test points with labels."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(4, 16, generator=generator)
    labels = torch.arange(400) % 4
    points = centers[labels] + spread * torch.randn(400, 16, generator=generator)
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


def test_the_majority_is_that_of_the_training_images() -> None:
    assert majority_top1(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 0, 1])) == 0.25


@pytest.mark.parametrize(
    ("noise", "low", "high"), [(0.0, 0.999, 1.001), (1.0, 0.6, 0.8), (100.0, -0.1, 0.1)]
)
def test_what_all_images_have_in_common_is_no_prediction_of_what_differs(
    noise: float, low: float, high: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    scene, differing = torch.randn(16, 8, generator=generator), torch.zeros(400, 16, 8)
    differing[:, 3] = torch.randn(400, 8, generator=generator)  # at one place only
    judged = torch.rand(400, 16, generator=generator) < 0.6
    wrong = noise * torch.randn(400, 16, 8, generator=generator) * (differing != 0)
    ours, mean_token = BetweenImages(), BetweenImages()

    for part in torch.arange(400).split(150):
        true, at = 10 * scene + differing[part], judged[part]
        ours.add(9 * scene + 0.5 * (differing + wrong)[part], true, at)
        mean_token.add((10 * scene).expand_as(true), true, at)

    assert low < ours.correlation() < high
    assert abs(mean_token.correlation()) < 1e-6
