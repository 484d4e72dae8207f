"""Color changes, grayscale, blur and mixup: random per image, never on the host."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from hgkd_edge.data.augment import distort

NONE = [0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.9, 0.5]  # no jitter, no gray, no blur


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 24, 32, generator=torch.Generator().manual_seed(0))


def drawn(**changes: float) -> Tensor:
    names = ["jitter", "brightness", "contrast", "saturation", "hue", "gray", "blur", "sigma"]
    values = dict(zip(names, NONE, strict=True)) | changes
    return torch.tensor([list(values.values())])


def test_draws_that_ask_for_nothing_change_nothing() -> None:
    view = images()

    assert (distort(view, torch.tensor([NONE, NONE])) - view).abs().max() < 1e-5


def test_every_image_follows_its_own_draws() -> None:
    view, draws = images(3), torch.rand(3, 8, generator=torch.Generator().manual_seed(1))

    together = distort(view, draws)

    alone = torch.cat([distort(view[i : i + 1], draws[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert together.min() >= 0
    assert together.max() <= 1


@pytest.mark.parametrize(("draw", "factor"), [(0.0, 0.6), (1.0, 1.4)])
def test_brightness_and_contrast_are_torchvisions(draw: float, factor: float) -> None:
    view = images(1)

    brighter = distort(view, drawn(jitter=0.0, brightness=draw))
    contrasted = distort(view, drawn(jitter=0.0, contrast=draw))

    assert torch.allclose(brighter, F.adjust_brightness(view, factor), atol=1e-4)
    assert torch.allclose(contrasted, F.adjust_contrast(view, factor), atol=1e-4)


def test_grayscale_is_torchvisions_and_hue_leaves_the_luma() -> None:
    view = images(1) * 0.4 + 0.3  # far from the ends, where values are cut

    gray = distort(view, drawn(gray=0.0))
    turned = distort(view, drawn(jitter=0.0, hue=0.9))

    assert torch.allclose(gray, F.rgb_to_grayscale(view, num_output_channels=3), atol=1e-3)
    luma = [F.rgb_to_grayscale(each) for each in (view, turned)]
    assert torch.allclose(*luma, atol=2e-3)
    assert (turned - view).abs().max() > 0.01


def test_blur_is_torchvisions() -> None:
    view = images(1)

    blurred = distort(view, drawn(blur=0.0, sigma=1.0))

    assert torch.allclose(blurred, F.gaussian_blur(view, [13, 13], [2.0, 2.0]), atol=1e-3)
