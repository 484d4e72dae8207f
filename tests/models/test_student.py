from __future__ import annotations

import pytest
import torch

from hgkd_edge.models.backbone import create_features
from hgkd_edge.models.decoder import upsample_mask
from hgkd_edge.models.student import Student, token_stride
from hgkd_edge.sparse import sparsify


def small_student(**more: object) -> Student:
    torch.manual_seed(0)
    # timm starts residual branches at zero, which would keep gradients from them at first.
    args = {"channels": [8, 16, 24, 32], "zero_init_last": False}
    features = create_features("resnet18", stem_stride=2, args=args, min_stride=8)
    return Student(sparsify(features), teacher_width=12, decoder_width=16, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reductions", "patch", "stride"),
    [([2, 4, 8, 16, 32], 16, 16), ([2, 4, 8, 16, 32], 14, 16), ([2, 4, 8, 16], 8, 8), ([4], 16, 4)],
)
def test_student_and_teacher_meet_on_the_nearest_grid(
    reductions: list[int], patch: int, stride: int
) -> None:
    assert token_stride(reductions, patch) == stride


def test_predictions_lie_on_the_teachers_grid_for_non_square_images() -> None:
    student = small_student(pixels=True)
    visible = torch.rand(2, 4, 6) < 0.5
    visible[:, 0, 0] = True

    tokens, pixels = student(torch.rand(2, 3, 64, 96), visible)

    assert tokens.shape == (2, 8 * 12, 12)
    assert pixels is not None
    assert pixels.shape == (2, 8 * 12, 8 * 8 * 3)


def test_masked_pixels_never_influence_a_prediction() -> None:
    student = small_student().eval()
    images = torch.rand(1, 3, 64, 64)
    visible = torch.zeros(1, 4, 4, dtype=torch.bool)
    visible[0, 1:3, 1:3] = True
    pixel_visible = upsample_mask(visible, (64, 64))[:, None]
    changed = torch.where(pixel_visible, images, torch.rand_like(images))

    with torch.inference_mode():
        before, after = student(images, visible)[0], student(changed, visible)[0]

    torch.testing.assert_close(before, after)


def test_every_weight_of_the_student_learns() -> None:
    student = small_student()
    visible = torch.rand(4, 4, 4) < 0.5
    visible[:, 0, 0] = True

    student(torch.rand(4, 3, 64, 64), visible)[0].square().mean().backward()

    silent = [name for name, p in student.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_a_mask_is_repeated_over_its_patch() -> None:
    visible = torch.tensor([[[True, False]]])

    assert upsample_mask(visible, (2, 4)).tolist() == [[[True, True, False, False]] * 2]
