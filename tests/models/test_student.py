from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hgkd_edge.models.backbone import create_features
from hgkd_edge.models.decoder import Decoder, upsample_mask
from hgkd_edge.models.student import Student, token_stride
from hgkd_edge.sparse import sparsify


def small_student(backend: str = "tiles", **more: object) -> Student:
    torch.manual_seed(0)
    # timm starts residual branches at zero, which would keep gradients from them at first.
    args = {"channels": [8, 16, 24, 32], "zero_init_last": False}
    features = create_features("resnet18", stem_stride=2, args=args, min_stride=8)
    return Student(sparsify(features, backend), teacher_width=12, decoder_width=16, **more)  # type: ignore[arg-type]


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

    tokens, pixels, embedding = student(torch.rand(2, 3, 64, 96), visible)

    assert embedding is None
    assert tokens.shape == (2, 8 * 12, 12)
    assert pixels is not None
    assert pixels.shape == (2, 8 * 12, 8 * 8 * 3)


def test_with_a_single_map_a_masked_site_is_predicted_from_visible_ones() -> None:
    decoder = Decoder([8], width=16).eval()
    maps = torch.randn(2, 16, 4, 4, requires_grad=True)
    visible = torch.eye(4, dtype=torch.bool).expand(2, 4, 4)

    decoded = decoder([maps], visible)

    masked = decoded.permute(0, 2, 3, 1)[~visible]
    first, second = masked.chunk(2)
    assert not torch.allclose(first, second)  # of two images
    masked.square().sum().backward()
    assert maps.grad is not None
    assert maps.grad.any()


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


@pytest.mark.parametrize("more", [{}, {"head": "mlp", "embedding": True}])
def test_every_weight_of_the_student_learns(more: dict[str, object]) -> None:
    student = small_student(**more)
    visible = torch.rand(4, 4, 4) < 0.5
    visible[:, 0, 0] = True

    predicted = student(torch.rand(4, 3, 64, 64), visible)
    loss = predicted.tokens.square().mean()
    if predicted.embedding is not None:
        loss = loss + predicted.embedding.square().mean()
    loss.backward()

    silent = [name for name, p in student.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_a_head_of_two_layers_has_a_hidden_one_of_twice_the_decoders_width() -> None:
    head = small_student(head="mlp").head

    shapes = [tuple(weight.shape[:2]) for weight in head.parameters() if weight.dim() == 4]
    assert shapes == [(32, 16), (12, 32)]
    one, other = torch.randn(2, 1, 16, 1, 1)
    assert not torch.allclose(head(one) + head(other), head(one + other) + head(0 * one))


@pytest.mark.parametrize("backend", ["tiles", "masked"])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_the_embedding_is_made_of_the_visible_sites_of_the_deepest_map(
    backend: str, share: float
) -> None:
    student = small_student(backend, embedding=True).eval()
    images = torch.rand(2, 3, 64, 64)
    visible = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)) < share

    with torch.inference_mode():
        predicted = student(images, visible)
        deepest = student.encoder(images, visible)[-1]
        student.embedding_head, head = None, student.embedding_head
        without = student(images, visible)

    sites = [m.flatten(1)[:, v.flatten()].mean(1) for m, v in zip(deepest, visible, strict=True)]
    torch.testing.assert_close(predicted.embedding, head(torch.stack(sites)))
    torch.testing.assert_close(predicted.tokens, without.tokens)


def filled_first(decoder: Decoder, maps: list[Tensor], visible: Tensor) -> Tensor:
    """SparK's own order: mask tokens on the dense map, then the 1x1 convolution."""
    levels = []
    for level, token, lateral in zip(maps, decoder.mask_tokens, decoder.lateral, strict=True):
        mask = upsample_mask(visible, level.shape[-2:])[:, None]
        levels.append(lateral(torch.where(mask, level, token)))
    x = levels.pop()
    for up, refine in zip(decoder.up, decoder.refine, strict=True):
        x = refine(up(x) + levels.pop())
    return x


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "nothing masked"])
@pytest.mark.parametrize("backend", ["tiles", "masked"])
def test_lateral_convolutions_on_visible_sites_give_sparks_values_and_gradients(
    backend: str, masked: bool
) -> None:
    student = small_student(pixels=True, backend=backend).double()
    encoder, decoder = student.encoder, student.decoder
    visible = torch.rand(2, 4, 6) < (0.5 if masked else 2)
    visible[:, 0, 0] = True
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)

    tokens, pixels, _ = student(images, visible)
    expected = filled_first(decoder, encoder(images, visible), visible)

    assert pixels is not None
    assert student.pixel_head is not None
    for head, ours in ((student.head, tokens), (student.pixel_head, pixels)):
        theirs = head(expected).flatten(2).transpose(1, 2)
        parameters = [*encoder.parameters(), *decoder.parameters(), *head.parameters()]
        cotangent = torch.randn_like(theirs)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        for a, b in zip(
            torch.autograd.grad(ours, parameters, cotangent, retain_graph=True),
            torch.autograd.grad(theirs, parameters, cotangent, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


def test_no_dense_map_of_the_encoders_width_is_made() -> None:
    student = small_student()
    visible = torch.zeros(2, 4, 4, dtype=torch.bool)
    visible[:, 1:3, 1:3] = True
    seen: list[str] = []
    for lateral in student.decoder.lateral:
        lateral.register_forward_pre_hook(lambda _, args: seen.append(type(args[0]).__name__))

    student(torch.rand(2, 3, 64, 64), visible)

    assert seen[: len(student.decoder.lateral)] == ["SiteTensor"] * len(student.decoder.lateral)


def test_the_decoders_state_has_the_names_that_checkpoints_hold() -> None:
    decoder = Decoder([8, 16], width=4)

    assert {name.split(".")[0] for name in decoder.state_dict()} == {
        "mask_tokens", "lateral", "up", "refine",
    }  # fmt: skip
    assert decoder.mask_tokens[1].shape == (1, 16, 1, 1)
    assert decoder.lateral[1].weight.shape == (4, 16, 1, 1)


def test_a_mask_is_repeated_over_its_patch() -> None:
    visible = torch.tensor([[[True, False]]])

    assert upsample_mask(visible, (2, 4)).tolist() == [[[True, True, False, False]] * 2]
