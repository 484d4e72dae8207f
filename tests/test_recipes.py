"""Every recipe for real use, built at reduced size and trained for real steps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from hgkd_edge.distillation.distill import distill
from hgkd_edge.distillation.license import published_license
from hgkd_edge.distillation.parts import build
from hgkd_edge.distillation.teacher_network import create_vit
from hgkd_edge.models.backbone import read_backbone
from hgkd_edge.models.meta import on_meta
from hgkd_edge.recipe import Recipe, builtin_recipes, find_recipe, load_recipe
from hgkd_edge.rundir import RunDir

# Name -> what makes its networks small; names, methods and all else stay the recipe's own.
REDUCED: dict[str, dict[str, Any]] = {
    "resnet50_mae_b": {
        "teacher": {"args": {"depth": 2, "embed_dim": 96, "num_heads": 3}},
        "student": {"args": {"layers": [1, 1, 1, 1]}},
    },
    "resnet18_dinov2_s": {"teacher": {"args": {"depth": 2, "embed_dim": 96, "num_heads": 3}}},
    "mobilenetv4_dinov3": {"teacher": {"args": {"depth": 2}}},
    "convnext_tiny_mae_l": {
        "teacher": {
            "args": {"depth": 3, "embed_dim": 96, "num_heads": 3},
            "layers": [1, 2],
        },
        "student": {"args": {"depths": [1, 1, 1, 1], "dims": [24, 48, 96, 192]}},
    },
    "efficientnet_lite0_beitv2": {
        "teacher": {"args": {"depth": 2, "embed_dim": 96, "num_heads": 3}}
    },
    "cifar_small": {"student": {"args": {"channels": [8, 16, 24, 32]}}},
}


def reduced(name: str, photos: Path, folder: Path) -> Recipe:
    """The recipe at 64 px (32 px where it is made for that), its teacher untrained."""
    raw = yaml.safe_load(find_recipe(name).read_text())
    for section, changes in REDUCED[name].items():
        for key, value in changes.items():
            old = raw[section].get(key)
            raw[section][key] = {**old, **value} if isinstance(old, dict) else value
    raw["data"] |= {"path": str(photos), "image_size": min(64, raw["data"]["image_size"])}
    raw["train"] |= {"epochs": 1, "batch_size": 16, "warmup_epochs": 0, "precision": "fp32"}
    raw["student"]["decoder_width"] = 16
    if raw["student"].get("weights") == "hub":
        raw["student"] |= {"weights": "path", "path": str(folder / "student.safetensors")}
        save_file(timm.create_model(raw["student"]["name"]).state_dict(), raw["student"]["path"])
    if raw["teacher"]["weights"] == "pretrain":
        raw["teacher"]["args"] = {**raw["teacher"]["args"], "depth": 2, "embed_dim": 48}
        raw["teacher"]["pretrain"] |= {"epochs": 1, "batch_size": 16}
        return Recipe.model_validate(raw)
    state = create_vit(Recipe.model_validate(raw).teacher).state_dict()
    save_file(
        {key: value.clone().contiguous() for key, value in state.items()},
        folder / "teacher.safetensors",
    )
    raw["teacher"] |= {"weights": "path", "path": str(folder / "teacher.safetensors")}
    return Recipe.model_validate(raw)


@pytest.mark.parametrize("name", REDUCED)
def test_a_recipe_for_real_use_trains(name: str, photos: Path, tmp_path: Path) -> None:
    recipe = reduced(name, photos, tmp_path)
    run = RunDir.create(recipe, tmp_path / "run")

    distill(recipe, run)

    records = [json.loads(line) for line in run.log_file.open()]
    assert len(records) == 3
    assert all(math.isfinite(record["loss"]) for record in records)
    before = build(recipe).encoder.state_dict()
    after, _ = read_backbone(run.backbone_file)
    stem = next(key for key, value in before.items() if value.ndim == 4)
    trained = next(value for value in after.values() if value.shape == before[stem].shape)
    assert not torch.equal(trained, before[stem]), "no gradient reached the first convolution"


@pytest.mark.parametrize("name", REDUCED)
def test_the_license_of_a_recipe_is_that_of_its_teacher(name: str) -> None:
    recipe = load_recipe(find_recipe(name))
    text = find_recipe(name).read_text()

    with on_meta():
        vit = create_vit(recipe.teacher)
    license = published_license(vit) if recipe.teacher.weights == "hub" else ""

    assert ("no commercial use" in text) == ("nc" in license.lower().split("-"))


def test_every_recipe_that_comes_along_is_tried() -> None:
    assert set(builtin_recipes()) == {*REDUCED, "demo", "demo-teacher"}
