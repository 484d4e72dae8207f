from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from hgkd_edge.data.sources import open_splits
from hgkd_edge.distillation.teacher import Teacher
from hgkd_edge.distillation.teacher_network import create_vit, teacher_patch
from hgkd_edge.errors import RecipeError
from hgkd_edge.models.mae import MaskedAutoencoder
from hgkd_edge.models.meta import on_meta
from hgkd_edge.models.vit import encode_visible, patches_of
from hgkd_edge.recipe_sections import TeacherConfig
from tests.models.small_vit import small_vit


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_224", {"depth": 2}),
        ("vit_base_patch16_224.mae", {"depth": 2}),
        ("vit_small_patch14_dinov2", {"depth": 2}),
        ("vit_small_patch14_reg4_dinov2", {"depth": 2}),
        ("beit_base_patch16_224", {"depth": 2}),
        ("beitv2_base_patch16_224", {"depth": 2}),
        ("eva_large_patch14_196", {"depth": 2}),
        ("vit_small_patch16_dinov3", {"depth": 2}),
        ("vit_base_patch16_clip_224", {"depth": 2}),
        ("eva02_tiny_patch14_224", {"depth": 2}),
    ],
)
def test_targets_are_normalized_patch_tokens_without_class_or_register_tokens(
    name: str, args: dict[str, Any]
) -> None:
    config = TeacherConfig(name=name, args=args)
    with on_meta():
        patch = teacher_patch(create_vit(config))
    size = (3 * patch, 4 * patch)

    teacher = Teacher(create_vit(config, size=size), layers="last", size=size)
    targets = teacher(torch.rand(2, 3, 60, 80))

    assert targets.shape == (2, 12, teacher.width)
    torch.testing.assert_close(targets.mean(-1), torch.zeros(2, 12), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.std(-1), torch.ones(2, 12), atol=0.02, rtol=0)


def test_several_layers_are_averaged_after_their_normalization() -> None:
    vit, images = small_vit(), torch.rand(2, 3, 64, 64)

    both, first, last = (
        Teacher(vit, layers=layers, size=(64, 64))(images) for layers in ([0, 2], [0], "last")
    )

    torch.testing.assert_close(both, (first + last) / 2)


@pytest.mark.parametrize(
    ("name", "args", "has_class"),
    [
        ("vit_tiny_patch16_224", {"depth": 2}, True),
        ("vit_small_patch14_reg4_dinov2", {"depth": 2}, True),
        ("vit_base_patch16_siglip_224", {"depth": 2}, False),
        (
            "vit_small_patch16_224",
            {"depth": 2, "class_token": False, "reg_tokens": 2, "global_pool": "avg"},
            False,
        ),
        ("beitv2_base_patch16_224", {"depth": 2}, False),  # trained with the mean: `fc_norm`
        ("vit_small_patch16_dinov3", {"depth": 2}, True),
        ("eva02_tiny_patch14_224", {"depth": 2}, False),
    ],
)
def test_the_embedding_is_the_class_token_or_else_the_mean_token(
    name: str, args: dict[str, Any], has_class: bool
) -> None:
    config = TeacherConfig(name=name, args=args)
    with on_meta():
        patch = teacher_patch(create_vit(config))
    vit = create_vit(config, size=(2 * patch, 2 * patch)).eval()
    images, passes = torch.rand(2, 3, 2 * patch, 2 * patch), []
    vit.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    teacher = Teacher(vit, layers="last", size=(2 * patch, 2 * patch), embedding=True)

    targets = teacher(images)

    assert len(passes) == 1
    first = vit.forward_features(teacher._prepare(images))[:, 0]
    plain = Teacher(vit, layers="last", size=(2 * patch, 2 * patch))(images)
    image = first if has_class else plain.mean(dim=1)
    wanted = nn.functional.layer_norm(image, image.shape[-1:])
    torch.testing.assert_close(targets[:, :-1], plain)
    torch.testing.assert_close(targets[:, -1], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("embedding", [False, True])
def test_images_that_are_nearly_equal_do_not_make_noise_the_target(embedding: bool) -> None:
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0, depth=2)
    teacher = Teacher(vit, layers="last", size=(64, 64), embedding=embedding)
    scene, different = torch.rand(1, 3, 64, 64), torch.rand(8, 3, 64, 64)
    still = (scene + 1e-3 * torch.randn(8, 3, 64, 64)).clamp(0, 1)

    varied = teacher.between_images([(still, None)])
    teacher.standardize([(still, None)])

    assert varied < 0.1
    places = 16  # without the row of the whole image, which the loss compares by its direction
    assert teacher(still)[:, :places].abs().mean() < 0.1, "noise stays small"
    assert teacher(different)[:, :places].abs().max() < 50, "no division by a spread near zero"


def test_the_floor_leaves_images_that_differ_as_they_are() -> None:
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0, depth=2)
    teacher = Teacher(vit, layers="last", size=(64, 64))
    images = torch.rand(32, 3, 1, 1) * torch.ones(3, 64, 64) + 0.3 * torch.rand(32, 3, 64, 64)
    targets = teacher(images.clamp(0, 1))
    wanted = (targets - targets.mean(dim=0)).square().mean(dim=(0, 1)).sqrt()

    varied = teacher.between_images([(images.clamp(0, 1), None)])
    teacher.standardize([(images.clamp(0, 1), None)])

    assert varied > 0.5
    torch.testing.assert_close(teacher.spread[0], wanted, rtol=1e-3, atol=1e-4)


def test_the_embedding_is_of_the_same_blocks_and_standardized_by_itself() -> None:
    images = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    vit, more = small_vit(), {"layers": [0, 2], "size": (64, 64)}
    tokens_only = Teacher(vit, **more)  # type: ignore[arg-type]
    teacher = Teacher(vit, **more, embedding=True)  # type: ignore[arg-type]
    for each in (tokens_only, teacher):
        each.standardize([(images, None)])

    targets = teacher(images)

    assert targets.shape == (16, 65, 48)
    torch.testing.assert_close(targets[:, :-1], tokens_only(images))
    spread, center = targets[:, -1].std(dim=0, correction=0), targets[:, -1].mean(dim=0)
    torch.testing.assert_close(spread, torch.ones_like(spread), atol=1e-2, rtol=0)
    torch.testing.assert_close(center, torch.zeros_like(center), atol=1e-3, rtol=0)


@pytest.mark.parametrize("class_token", [True, False])
def test_the_embedding_of_what_is_visible_with_everything_visible_is_the_full_one(
    class_token: bool,
) -> None:
    more = {} if class_token else {"class_token": False, "global_pool": "avg"}
    teacher = Teacher(small_vit(**more), layers="last", size=(64, 64), embedding=True)
    images = torch.rand(4, 3, 64, 64)
    teacher.standardize([(images, torch.rand(4, 64).argsort(1) < 40)])

    visible = teacher.forward_visible(images, torch.ones(4, 64, dtype=torch.bool))

    torch.testing.assert_close(visible, teacher(images), atol=1e-3, rtol=1e-3)


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(RecipeError, match="blocks 0 to 2"):
        Teacher(small_vit(), layers=[7], size=(64, 64))


def test_visible_targets_with_everything_visible_are_the_full_ones() -> None:
    teacher, images = Teacher(small_vit(), layers="last", size=(64, 64)), torch.rand(2, 3, 64, 64)

    visible = teacher.forward_visible(images, torch.ones(2, 64, dtype=torch.bool))

    torch.testing.assert_close(visible, teacher(images), atol=1e-4, rtol=1e-4)


def test_masked_pixels_never_influence_visible_targets() -> None:
    teacher, images = Teacher(small_vit(), layers="last", size=(64, 64)), torch.rand(1, 3, 64, 64)
    visible = torch.zeros(1, 64, dtype=torch.bool)
    visible[0, :32] = True  # the upper half
    changed = images.clone()
    changed[:, :, 32:] = 0

    before, after = (teacher.forward_visible(x, visible) for x in (images, changed))

    assert torch.equal(before, after)
    assert not before[:, 32:].any()
    assert before[:, :32].any()


def test_a_teacher_stays_frozen_and_in_evaluation_mode() -> None:
    teacher = Teacher(small_vit(drop_path_rate=0.5), layers="last", size=(64, 64)).train()

    assert not teacher.vit.training
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("name", ["resnet18", "xcit_nano_12_p8_224"])
def test_a_network_without_patch_tokens_is_no_teacher(name: str) -> None:
    with pytest.raises(RecipeError, match="not a Vision Transformer"):
        create_vit(TeacherConfig(name=name))


def test_the_masked_autoencoder_sees_a_quarter_and_learns(photos: Path) -> None:
    from hgkd_edge.data.augment import center_view, normalize
    from hgkd_edge.recipe_sections import DataConfig

    images = open_splits(DataConfig(path=photos, image_size=64))["train"].images[:16]
    view = normalize(center_view(images, size=(64, 64)), (0.5,) * 3, (0.25,) * 3)
    torch.manual_seed(0)
    mae = MaskedAutoencoder(small_vit(), mask_ratio=0.75, decoder_width=32, decoder_depth=1)
    optimizer = torch.optim.AdamW(mae.parameters(), lr=3e-3)
    noise = torch.rand(16, 64)

    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = mae(view, noise)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[0] > 0.9  # pixels are normalized: predicting nothing costs 1
    assert losses[-1] < 0.8 * losses[0]


def test_encoding_some_tokens_equals_encoding_only_those() -> None:
    vit, images = small_vit(), torch.rand(2, 3, 64, 64)
    everything = torch.arange(64).expand(2, -1)

    tokens = encode_visible(vit, images, everything)

    torch.testing.assert_close(tokens, vit.forward_features(images), atol=1e-5, rtol=1e-5)


def test_patches_lie_in_row_major_order() -> None:
    images = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)

    patches = patches_of(images, 2)

    assert patches.shape == (2, 6, 12)
    assert patches[0, 1, :3].tolist() == [images[0, c, 0, 2].item() for c in range(3)]
    assert patches[0, 3, :3].tolist() == [images[0, c, 2, 0].item() for c in range(3)]


def test_standardized_targets_hold_no_mean_token_and_even_channels() -> None:
    args = {"depth": 2, "embed_dim": 48, "patch_size": 8}
    vit = create_vit(TeacherConfig(name="vit_tiny_patch16_224", args=args), size=(64, 64))
    teacher = Teacher(vit, layers="last", size=(64, 64))
    images = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    before = teacher(images)
    teacher.standardize((part, None) for part in images.split(8))
    after = teacher(images)

    assert before.mean(dim=0).abs().max() > 0.5
    torch.testing.assert_close(after.mean(dim=0), torch.zeros_like(after[0]), atol=1e-4, rtol=0)
    spread = after.square().mean(dim=(0, 1)).sqrt()
    torch.testing.assert_close(spread, torch.ones_like(spread), atol=1e-3, rtol=0)


def test_a_teacher_normalizes_by_its_own_mean_and_deviation() -> None:
    config = TeacherConfig(name="vit_base_patch16_clip_224", args={"depth": 1, "embed_dim": 48})
    vit = create_vit(config, size=(32, 32))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    own = vit.pretrained_cfg
    assert own["mean"] != (0.485, 0.456, 0.406), "CLIP's own"

    mean, std = (torch.tensor(own[key])[:, None, None] for key in ("mean", "std"))
    tokens = vit.forward_features((images - mean) / std)[:, vit.num_prefix_tokens :]

    wanted = torch.nn.functional.layer_norm(tokens, tokens.shape[-1:])
    torch.testing.assert_close(Teacher(vit, layers="last", size=(32, 32))(images), wanted)
