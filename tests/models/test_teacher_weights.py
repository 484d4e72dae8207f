from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from hgkd_edge.data.augment import IMAGENET_MEAN
from hgkd_edge.data.sources import open_splits
from hgkd_edge.distillation import pretrain
from hgkd_edge.distillation.license import forbids_commerce, print_license, published_license
from hgkd_edge.distillation.parts import build
from hgkd_edge.distillation.pretrain import pretrain_teacher
from hgkd_edge.distillation.teacher import Teacher
from hgkd_edge.distillation.teacher_network import create_vit, has_class_token
from hgkd_edge.distillation.teacher_weights import BUNDLED_TEACHER, load_vit_weights
from hgkd_edge.errors import RecipeError
from hgkd_edge.models.mae import MaskedAutoencoder
from hgkd_edge.recipe import Recipe, find_recipe, load_recipe
from hgkd_edge.recipe_sections import TeacherConfig
from tests.models.small_vit import SMALL, small_vit


@pytest.mark.parametrize(
    "wrapped",
    ["safetensors", "state_dict", "official MAE", "averaged", "compiled", "DINO", "numbered"],
)
def test_local_checkpoints_of_every_usual_kind_load(wrapped: str, tmp_path: Path) -> None:
    source, vit = small_vit(), small_vit()
    nn.init.normal_(source.pos_embed)
    state = source.state_dict()
    if wrapped == "safetensors":
        path = tmp_path / "w.safetensors"
        save_file(state, path)
    else:
        # The official release holds {"model": ...} with the decoder next to the encoder.
        extra = {"decoder_embed.weight": torch.zeros(2, 2), "mask_token": torch.zeros(1)}
        raw = {key: torch.zeros_like(value) for key, value in state.items()}
        content: dict[str, Any] = {
            "state_dict": state,
            "official MAE": {"model": {**state, **extra}},
            "averaged": {"epoch": 3, "state_dict": raw, "state_dict_ema": state},
            "compiled": {f"_orig_mod.model.{key}": value for key, value in state.items()},
            "DINO": {"model": {f"teacher.backbone.{key}": v for key, v in state.items()}},
            "numbered": {**state, 3: torch.zeros(1)},
        }
        path = tmp_path / "w.pth"
        torch.save(content[wrapped], path)

    load_vit_weights(vit, path)

    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(vit.forward_features(images), source.forward_features(images))


@pytest.mark.parametrize(("objective", "expected"), [("mae", False), ("ibot", True)])
def test_the_class_token_of_an_own_teacher_counts_if_its_training_used_it(
    objective: str, expected: bool, tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    tiny_recipe["teacher"] |= {"pretrain": {"objective": objective}}
    recipe, vit = Recipe.model_validate(tiny_recipe), small_vit()
    source = open_splits(recipe.data)["train"]

    pretrain._save(vit, tmp_path / "w.safetensors", recipe, source, (64, 64))
    load_vit_weights(vit, tmp_path / "w.safetensors")

    assert has_class_token(vit) is expected
    assert has_class_token(small_vit())


def test_the_demo_teachers_class_token_was_not_trained() -> None:
    recipe = load_recipe(find_recipe("demo"))
    vit = create_vit(recipe.teacher, size=recipe.data.size)

    load_vit_weights(vit, BUNDLED_TEACHER)

    assert not has_class_token(vit)


def test_position_embeddings_are_resampled_to_the_teachers_grid(tmp_path: Path) -> None:
    source = small_vit()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    larger = timm.create_model("vit_tiny_patch16_224", img_size=96, **SMALL)

    load_vit_weights(larger, tmp_path / "w.safetensors")

    assert torch.equal(larger.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    assert larger.pos_embed.shape[1] == 145


class Payload:
    """Pickles to a call: as in a hostile checkpoint."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


def test_a_checkpoint_that_would_run_code_is_refused_and_does_not(tmp_path: Path) -> None:
    torch.save({"model": Payload(tmp_path / "owned")}, tmp_path / "w.pth")

    with pytest.raises(RecipeError, match="more than tensors"):
        load_vit_weights(small_vit(), tmp_path / "w.pth")

    assert not (tmp_path / "owned").exists()


def test_a_checkpoint_of_another_network_names_what_is_missing(tmp_path: Path) -> None:
    save_file(small_vit(depth=2).state_dict(), tmp_path / "w.safetensors")

    with pytest.raises(RecipeError, match="blocks.2"):
        load_vit_weights(small_vit(), tmp_path / "w.safetensors")


def test_a_checkpoint_that_timm_cannot_convert_is_one_clear_error(tmp_path: Path) -> None:
    """BEiT's pre-training shares one table of positions among its blocks."""
    config = TeacherConfig(name="beitv2_base_patch16_224", args={"depth": 1, "embed_dim": 48})
    vit = create_vit(config, size=(32, 32))
    table = {"rel_pos_bias.relative_position_bias_table": torch.zeros(12, 12)}
    torch.save({**vit.state_dict(), **table}, tmp_path / "w.pth")

    with pytest.raises(RecipeError, match="timm cannot fit it to Beit.*must describe the network"):
        load_vit_weights(vit, tmp_path / "w.pth")


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint"])
def test_a_missing_or_broken_checkpoint_is_one_clear_error(
    content: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "w.pth"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(RecipeError, match="teacher.path"):
        load_vit_weights(small_vit(), path)


def test_hub_weights_without_a_network_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read at its import

    with pytest.raises(RecipeError, match="cannot be downloaded.*pretrain"):
        create_vit(TeacherConfig(name="vit_tiny_patch16_224"), size=(224, 224), pretrained=True)


def test_a_teacher_trained_here_sees_images_as_it_saw_them_in_its_training(
    tiny_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.model_validate({**tiny_recipe, "seed": 5})  # not in the cache yet
    parts, source = build(recipe), open_splits(recipe.data)["train"]
    seen: list[torch.Tensor] = []
    forward = MaskedAutoencoder.forward
    monkeypatch.setattr(
        "hgkd_edge.distillation.pretrain.random_view", lambda images, *_, **__: images / 255
    )
    monkeypatch.setattr(
        MaskedAutoencoder,
        "forward",
        lambda self, images, noise: (
            seen.append(images.cpu()) or forward(self, images[..., :64, :64], noise)
        ),
    )

    weights = pretrain_teacher(parts.vit, source, recipe, size=parts.teacher_size)
    vit = create_vit(recipe.teacher, size=parts.teacher_size)
    load_vit_weights(vit, weights)
    teacher = Teacher(vit, layers="last", size=source.images.shape[-2:])

    views = teacher._prepare(source.images / 255)
    assert all((views == image).flatten(1).all(1).any() for image in seen[0])
    assert (
        vit.pretrained_cfg["mean"] != timm.create_model(recipe.teacher.name).pretrained_cfg["mean"]
    )


def test_the_bundled_teacher_brings_the_normalization_of_its_training() -> None:
    vit = create_vit(
        TeacherConfig(name="vit_tiny_patch16_224", args={"patch_size": 8, "depth": 6}),
        size=(64, 64),
    )

    load_vit_weights(vit, BUNDLED_TEACHER)

    assert Teacher(vit, layers="last", size=(64, 64)).mean == IMAGENET_MEAN


def test_position_embeddings_of_another_size_are_resampled_as_timm_does(tmp_path: Path) -> None:
    from timm.layers import resample_abs_pos_embed

    config = TeacherConfig(
        name="vit_tiny_patch16_224", args={"depth": 1, "embed_dim": 48, "patch_size": 8}
    )
    torch.manual_seed(0)
    stored = create_vit(config, size=(32, 32))
    torch.nn.init.normal_(stored.pos_embed)
    torch.save(stored.state_dict(), tmp_path / "small.pth")

    wide = create_vit(config, size=(32, 64))
    load_vit_weights(wide, tmp_path / "small.pth")

    wanted = resample_abs_pos_embed(stored.pos_embed, new_size=[4, 8], num_prefix_tokens=1)
    torch.testing.assert_close(wide.pos_embed, wanted)


@pytest.mark.parametrize("file", [None, Path("/weights/teacher.pth")])
@pytest.mark.parametrize(
    ("name", "license", "terms"),
    [
        ("vit_base_patch16_224.mae", "cc-by-nc-4.0", "forbids commercial use"),
        ("vit_small_patch16_dinov3.lvd1689m", "dinov3-license", "has custom terms: read them"),
        ("vit_tiny_patch16_224", "apache-2.0", ""),
    ],
)
def test_a_license_with_conditions_is_a_warning(
    capsys: pytest.CaptureFixture[str], file: Path | None, name: str, license: str, terms: str
) -> None:
    vit = timm.create_model(name, depth=1)

    print_license(name, published_license(vit), role="teacher", file=file)

    first, *warnings = capsys.readouterr().err.splitlines()
    assert license in first
    assert (f"the published weights of {name}" in first) == (file is not None)
    assert [terms in line for line in warnings] == [True] * bool(terms)


@pytest.mark.parametrize(
    ("license", "forbidden"),
    [
        ("cc-by-nc-4.0", True),
        ("fair-noncommercial-research-license", True),
        ("apple-amlr", True),
        ("apache-2.0", False),
        ("dinov3-license", False),
    ],
)
def test_what_forbids_commercial_use_is_known_by_its_name(license: str, forbidden: bool) -> None:
    assert forbids_commerce(license) == forbidden
