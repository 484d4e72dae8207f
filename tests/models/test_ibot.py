from __future__ import annotations

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from hgkd_edge.distillation.masks import BLOCK_DRAWS, block_masks
from hgkd_edge.models.vit import encode_masked

pytest.importorskip("lightly")

from hgkd_edge.models.ibot import OnlineTokenizer


def make_vit(**args: object) -> VisionTransformer:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224",
        **{"img_size": (32, 48), "patch_size": 8, "depth": 2, "embed_dim": 48, "num_classes": 0},
        **args,
    )


def make_tokenizer(vit: VisionTransformer | None = None, **settings: object) -> OnlineTokenizer:
    defaults = {"prototypes": 64, "shared_head": True, "momentum": 0.9, "temperature": 0.07}
    return OnlineTokenizer(vit or make_vit(), **{**defaults, **settings}).train()


def make_inputs(local_views: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    visible = block_masks(torch.rand(8, BLOCK_DRAWS, generator=draws), (4, 6), (0.1, 0.5))
    views = torch.randn(4, 2, 3, 32, 48, generator=draws)
    local = torch.randn(4, local_views, 3, 16, 24, generator=draws)
    return views, visible.view(4, 2, 4, 6), local


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"reg_tokens": 2},
        {"no_embed_class": True},
        {"pre_norm": True},
        {"class_token": False, "global_pool": "avg"},
    ],
)
def test_with_nothing_masked_all_tokens_are_those_of_timm(args: dict[str, object]) -> None:
    vit = make_vit(**args).eval()
    images = torch.randn(2, 3, 32, 48)

    assert torch.equal(encode_masked(vit, images), vit.forward_features(images))


def test_other_sizes_see_the_position_embeddings_resampled() -> None:
    vit = make_vit().eval()
    dynamic = make_vit(dynamic_img_size=True).eval()
    images = torch.randn(2, 3, 16, 24)

    torch.testing.assert_close(encode_masked(vit, images), dynamic.forward_features(images))


def test_masked_pixels_never_influence_the_tokens() -> None:
    vit = make_vit().eval()
    images = torch.randn(2, 3, 32, 48)
    masked = torch.zeros(2, 24, dtype=torch.bool)
    masked[:, 7] = True  # row 1, column 1
    changed = images.clone()
    changed[:, :, 8:16, 8:16] = 0
    token = torch.randn(1, 1, 48)

    one, other = (encode_masked(vit, each, masked, token) for each in (images, changed))

    assert torch.equal(one, other)
    assert not torch.equal(one, encode_masked(vit, images))


@pytest.mark.parametrize("shared_head", [True, False])
@pytest.mark.parametrize("local_views", [0, 3])
def test_a_pass_gives_finite_scalars_and_trains_only_the_student(
    shared_head: bool, local_views: int
) -> None:
    model = make_tokenizer(shared_head=shared_head)

    outputs = model(*make_inputs(local_views), 0.5)
    outputs["loss"].backward()

    assert outputs.keys() == {"loss", "class_loss", "patch_loss", "koleo_loss", "spread"}
    assert all(value.shape == () and value.isfinite() for value in outputs.values())
    terms = outputs["class_loss"] + outputs["patch_loss"] + 0.1 * outputs["koleo_loss"]
    torch.testing.assert_close(outputs["loss"], terms)
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    still = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert trained | still == {name for name, _ in model.named_parameters()}
    assert all(name.startswith("teacher.") or name.endswith("weight_g") for name in still)


def test_the_branches_score_class_tokens_and_masked_patches_only() -> None:
    model = make_tokenizer()
    views, visible, _ = make_inputs()
    masked = ~visible[:, 0].flatten(1)

    classes, patches, embeddings = model.student(views[:, 0], masked, model.mask_token)

    assert classes.shape == (4, 64)
    assert patches.shape == (int(masked.sum()), 64)
    assert embeddings.shape == (4, 48)


def test_the_teacher_starts_as_the_student_and_follows_at_its_momentum() -> None:
    model = make_tokenizer(momentum=0.75)
    before = model.student.encoder.norm.bias.detach().clone()
    torch.testing.assert_close(model.teacher.state_dict(), model.student.state_dict())
    with torch.no_grad():
        model.student.encoder.norm.bias += 1

    model(*make_inputs(), 0.0)
    torch.testing.assert_close(model.teacher.encoder.norm.bias, before + 0.25)
    model(*make_inputs(), 1.0)  # by then it no longer changes

    torch.testing.assert_close(model.teacher.encoder.norm.bias, before + 0.25)


def test_evaluated_the_model_changes_nothing_of_its_teacher() -> None:
    model = make_tokenizer().eval()
    with torch.no_grad():
        model.student.encoder.norm.bias += 1
    before = {name: value.clone() for name, value in model.teacher.state_dict().items()}

    model(*make_inputs(), 0.0)

    torch.testing.assert_close(model.teacher.state_dict(), before)


def test_the_temperature_rises_to_its_value_and_stays() -> None:
    model = make_tokenizer(temperature=0.07)

    temperatures = [model._temperature(progress) for progress in (0.0, 0.05, 0.1, 0.9)]

    assert temperatures == pytest.approx([0.04, 0.055, 0.07, 0.07])


def test_everything_that_changes_is_in_the_state_dict() -> None:
    model, other = make_tokenizer(), make_tokenizer(make_vit(init_values=None))
    inputs = make_inputs()
    model(*inputs, 0.2)
    other.load_state_dict(model.state_dict())

    outputs = [each.eval()(*inputs, 0.3) for each in (model, other)]

    assert all(torch.equal(outputs[0][name], outputs[1][name]) for name in outputs[0])
    centers = [name for name in model.state_dict() if name.endswith("center")]
    assert len(centers) == 2
    assert all(model.state_dict()[name].abs().max() > 0 for name in centers)


def test_the_centers_start_at_the_first_batch_and_then_move() -> None:
    model = make_tokenizer()
    inputs = make_inputs()
    images = inputs[0].transpose(0, 1).flatten(0, 1)
    masked = ~inputs[1].transpose(0, 1).flatten(0, 1).flatten(1)
    classes, patches, _ = model.teacher(images, masked, None)

    model(*inputs, 0.0)

    torch.testing.assert_close(model.class_loss.center[0, 0], classes.mean(dim=0))
    torch.testing.assert_close(model.patch_loss.center.value[0], patches.mean(dim=0))
    before = model.class_loss.center.clone()
    model(inputs[0] + 1, *inputs[1:], 0.5)
    assert not torch.equal(model.class_loss.center, before)


def test_on_images_that_differ_losses_fall_and_embeddings_spread() -> None:
    model = make_tokenizer(prototypes=32, temperature=0.04)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    colors = torch.randn(16, 1, 3, 4, 6).repeat_interleave(8, 3).repeat_interleave(8, 4)
    records = []

    for step in range(60):
        views = colors + 0.3 * torch.randn(16, 2, 3, 32, 48)
        visible = torch.ones(16, 2, 4, 6, dtype=torch.bool)
        visible[:, 0] = block_masks(torch.rand(16, BLOCK_DRAWS), (4, 6), (0.1, 0.5))
        outputs = model(views, visible, views.new_zeros(16, 0, 3, 16, 24), step / 60)
        optimizer.zero_grad()
        outputs["loss"].backward()
        optimizer.step()
        records.append({name: float(value.detach()) for name, value in outputs.items()})

    first, last = records[0], records[-1]
    assert last["class_loss"] < 0.5 * first["class_loss"]  # to ln 32 = 3.5 where it collapses
    assert last["patch_loss"] < 0.8 * first["patch_loss"]
    assert last["spread"] > 0.5  # 0 where all images look the same, 1 for random directions


def test_in_half_precision_losses_are_computed_in_full() -> None:
    model = make_tokenizer().eval()
    whole = model(*make_inputs(), 0.5)
    centers = [
        torch.zeros_like(b) for b in (model.class_loss.center, model.patch_loss.center.value)
    ]
    model.class_loss.center.data, model.patch_loss.center.center = centers

    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(*make_inputs(), 0.5)

    assert all(value.dtype == torch.float32 for value in half.values())
    for name in ("class_loss", "patch_loss", "koleo_loss"):
        torch.testing.assert_close(half[name], whole[name], rtol=0.03, atol=0.03)
