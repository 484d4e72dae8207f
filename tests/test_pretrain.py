"""A teacher trained on the user's own images, for each objective."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

import hgkd_edge
from hgkd_edge.data.sources import open_splits
from hgkd_edge.distillation import pretrain
from hgkd_edge.distillation.parts import build
from hgkd_edge.distillation.pretrain import pretrained_file
from hgkd_edge.errors import DataError, MissingPackageError, RecipeError
from hgkd_edge.evaluate import evaluate_features
from hgkd_edge.exportable import load_exportable
from hgkd_edge.files import locked
from hgkd_edge.pretrain_settings import PretrainConfig
from hgkd_edge.recipe import Recipe
from tests.data.helpers import spoil
from tests.test_export import new_run


@pytest.fixture
def ibot_recipe(tiny_recipe: dict[str, Any]) -> dict[str, Any]:
    """The tiny recipe with another objective, at half the size."""
    tiny_recipe["data"]["image_size"] = 32
    tiny_recipe["teacher"]["pretrain"] = {
        "objective": "ibot",
        "epochs": 2,
        "batch_size": 16,
        "ibot": {"prototypes": 64, "local_crops": 1},
    }
    return tiny_recipe


def trained(recipe: dict[str, Any]) -> Path:
    """The weights of a recipe's teacher."""
    resolved = Recipe.model_validate(recipe)
    parts, source = build(resolved), open_splits(resolved.data)["train"]
    return pretrain.pretrain_teacher(parts.vit, source, resolved, size=parts.teacher_size)


def log(weights: Path, stage: str = "ibot") -> list[dict[str, float]]:
    return [
        json.loads(line) for line in (weights.parent / f"{stage}.jsonl").read_text().splitlines()
    ]


def test_ibot_gives_a_plain_vit_with_its_card(ibot_recipe: dict[str, Any]) -> None:
    pytest.importorskip("lightly")

    weights = trained(ibot_recipe)

    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_classes=0
    )
    vit.load_state_dict(load_file(weights), strict=True)
    card = json.loads((weights.parent / "teacher.json").read_text())
    assert card["teacher"]["pretrain"]["objective"] == "ibot"
    assert card["photos"]["count"] == 48
    # What is kept is the average, not the student.
    state = torch.load(weights.parent / "ibot.pt", weights_only=True)["model"]
    assert torch.equal(vit.norm.bias, state["teacher.encoder.norm.bias"])
    assert not torch.equal(vit.norm.bias, state["student.encoder.norm.bias"])


def test_labels_tune_the_teacher_that_ibot_made(ibot_recipe: dict[str, Any]) -> None:
    pytest.importorskip("lightly")
    ibot_recipe["teacher"]["pretrain"] |= {"label_epochs": 1}

    weights = trained(ibot_recipe)

    before = torch.load(weights.parent / "ibot.pt", weights_only=True)["model"]
    after = load_file(weights)
    assert len(log(weights, "labels")) == 3
    assert not torch.equal(after["norm.bias"], before["teacher.encoder.norm.bias"])


@pytest.mark.parametrize("package", ["lightly", "lightly.loss"])
def test_a_missing_package_is_named_before_any_image_is_read(
    ibot_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "lightly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    ibot_recipe["data"]["path"] = "/nowhere"
    recipe = Recipe.model_validate(ibot_recipe)

    with pytest.raises(MissingPackageError, match="'ibot' needs the package 'lightly'") as caught:
        build(recipe)

    assert caught.value.hint == 'pip install "hgkd-edge[ibot]"'
    build(recipe, download=False)  # a recipe may be for another machine


def test_ibot_is_refused_without_a_class_token(ibot_recipe: dict[str, Any]) -> None:
    pytest.importorskip("lightly")
    ibot_recipe["teacher"]["args"] |= {"class_token": False, "global_pool": "avg"}

    with pytest.raises(RecipeError, match="has no class token"):
        build(Recipe.model_validate(ibot_recipe))


def test_ibot_is_refused_for_a_single_image(
    ibot_recipe: dict[str, Any], photos: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lightly")
    image = next(photos.rglob("*.webp"))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / image.name).write_bytes(image.read_bytes())
    ibot_recipe["data"] |= {"path": str(tmp_path / "one"), "holdout": 0}

    with pytest.raises(DataError, match="'ibot' compares images: a batch of 16 out of 1 is"):
        trained(ibot_recipe)


def test_masked_autoencoders_of_earlier_versions_are_found_again() -> None:
    keys = {
        "epochs", "label_epochs", "batch_size", "lr", "label_lr", "weight_decay", "mask_ratio",
        "decoder_width", "decoder_depth",
    }  # fmt: skip

    assert PretrainConfig().effective.keys() == keys


def test_only_settings_of_the_objective_name_a_teacher() -> None:
    settings = PretrainConfig.model_validate({"objective": "ibot"}).effective

    assert settings["objective"] == "ibot"
    assert settings["ibot"]["prototypes"] == 2048
    assert "decoder_width" not in settings


def test_a_teacher_of_images_decoded_to_another_size_is_another_one(
    tiny_recipe: dict[str, Any],
) -> None:
    recipe = Recipe.model_validate(tiny_recipe)
    source = open_splits(recipe.data)["train"]
    smaller = recipe.model_copy(update={"data": recipe.data.model_copy(update={"image_size": 32})})

    files = {pretrained_file(each, source, (64, 64)) for each in (recipe, smaller)}

    assert len(files) == 2


def test_a_label_stage_that_was_lost_is_repeated_exactly(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HGKD_EDGE_CACHE", str(tmp_path))
    tiny_recipe["teacher"]["pretrain"]["label_epochs"] = 1
    made = trained(tiny_recipe)
    whole = load_file(made)
    for file in (made, *made.parent.glob("labels.*")):
        file.unlink()

    again = load_file(trained(tiny_recipe))

    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_who_needs_a_teacher_that_another_run_pretrains_waits_for_it(
    tiny_recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = trained(tiny_recipe)
    monkeypatch.setenv("HGKD_EDGE_CACHE", str(tmp_path))
    awaited = tmp_path / "teachers" / made.parent.name / made.name
    other_run = contextlib.ExitStack()
    other_run.enter_context(locked(awaited.parent, lambda seconds: None))

    def finish(seconds: float) -> None:
        shutil.copy(made, awaited)
        other_run.close()

    monkeypatch.setattr("hgkd_edge.files.time.sleep", finish)

    assert trained(tiny_recipe) == awaited
    printed = "".join(capsys.readouterr())
    assert "waiting for another run that pre-trains the same one" in printed
    assert "found pre-trained in" in printed


@pytest.mark.parametrize("ratio", [0.1, 0.9])
def test_a_ratio_that_masks_no_token_or_all_is_refused(
    tiny_recipe: dict[str, Any], ratio: float
) -> None:
    tiny_recipe["data"]["image_size"] = 32
    tiny_recipe["teacher"]["args"]["patch_size"] = 16  # 2 x 2 tokens
    tiny_recipe["teacher"]["pretrain"]["mask_ratio"] = ratio

    with pytest.raises(RecipeError, match=f"mask_ratio {ratio} masks . of 2x2 tokens"):
        build(Recipe.model_validate(tiny_recipe))


@pytest.mark.parametrize("decode", ["once", "streaming"])
def test_images_that_are_skipped_are_named(
    tiny_recipe: dict[str, Any],
    photos: Path,
    tmp_path: Path,
    decode: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    broken = sorted((tmp_path / "photos" / "train").glob("*/*.webp"))[3]
    spoil(broken)
    tiny_recipe["data"] |= {"path": str(tmp_path / "photos"), "decode": decode}

    hgkd_edge.pretrain(tiny_recipe)

    printed = "".join(capsys.readouterr())
    assert printed.count("skipped 1 file or annotation") == 1
    assert broken.name in printed


def test_export_and_evaluate_name_the_images_that_they_skip(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    run = new_run(tmp_path / "photos", tmp_path / "run")
    broken = sorted((tmp_path / "photos" / "test").glob("*/*.webp"))[3]
    spoil(broken)

    load_exportable(run)
    assert broken.name in "".join(capsys.readouterr())

    evaluate_features(run)
    assert broken.name in "".join(capsys.readouterr())
