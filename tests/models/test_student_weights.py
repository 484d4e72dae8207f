"""A student that starts from trained weights has exactly these weights, also on visible sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from hgkd_edge.distillation.distill import distill
from hgkd_edge.distillation.parts import build
from hgkd_edge.errors import RecipeError, RunError
from hgkd_edge.models.backbone import (
    BackboneSpec,
    create_features,
    read_backbone,
    save_backbone,
)
from hgkd_edge.recipe import Recipe
from hgkd_edge.rundir import RunDir
from hgkd_edge.sparse import densify
from hgkd_edge.tasks.base import ModelCard, read_model, save_model
from tests.conftest import NARROW


def recipe_of(mapping: dict[str, Any], path: Path, **student: Any) -> Recipe:
    student = {**mapping["student"], "weights": "path", "path": str(path), **student}
    return Recipe.model_validate({**mapping, "student": student})


@pytest.mark.parametrize(
    "form", ["classifier.pth", "classifier.safetensors", "backbone.safetensors"]
)
def test_the_students_weights_are_those_of_the_file(
    tiny_recipe: dict[str, Any], tmp_path: Path, form: str
) -> None:
    file = tmp_path / form
    torch.manual_seed(7)
    plain = timm.create_model("resnet18", num_classes=5, **NARROW)
    if form == "backbone.safetensors":
        features = create_features("resnet18", stem_stride=2, args=NARROW)
        spec = BackboneSpec("resnet18", 2, (64, 64), (0.5,) * 3, (0.5,) * 3, NARROW)
        save_backbone(features, spec, file)
        wanted = features.state_dict()
    else:
        wanted = plain.state_dict()
        save = torch.save if form.endswith("pth") else save_file
        save(wanted, file)

    parts = build(recipe_of(tiny_recipe, file))

    student = parts.encoder.state_dict()
    assert student
    assert all(torch.equal(value, wanted[name]) for name, value in student.items())
    dense = densify(parts.encoder).eval()
    images = torch.rand(1, 3, 64, 64)
    whole = [
        m.detach() for m in parts.encoder.eval()(images, torch.ones(1, 4, 4, dtype=torch.bool))
    ]
    for mine, its in zip(dense(images), whole, strict=True):
        torch.testing.assert_close(mine, its)


def test_weights_of_another_network_are_refused_in_one_line(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "other.safetensors"
    save_file(timm.create_model("resnet18", num_classes=0).state_dict(), file)

    with pytest.raises(RecipeError, match=r"student.path.*does not fit.*student.name") as caught:
        build(recipe_of(tiny_recipe, file))
    assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match=r"student.path = .*no such file"):
        build(recipe_of(tiny_recipe, tmp_path / "absent"))
    with pytest.raises(ValueError, match="set student.path if student.weights is 'path'"):
        recipe_of(tiny_recipe, file, weights="none")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_wherever_they_come_from(
    tiny_recipe: dict[str, Any], tmp_path: Path, value: float
) -> None:
    student, model = tmp_path / "student.safetensors", tmp_path / "model.safetensors"
    state = timm.create_model("resnet18", num_classes=0, **NARROW).state_dict()
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = value
    save_file(state, student)
    backbone = tmp_path / "backbone.safetensors"
    features = create_features("resnet18", stem_stride=2, args=NARROW)
    features.load_state_dict(state)
    spec = BackboneSpec("resnet18", 2, (64, 64), (0.5,) * 3, (0.5,) * 3, NARROW)
    save_backbone(features, spec, backbone)
    save_model(features, ModelCard("classify", ("a", "b"), spec), model)

    with pytest.raises(RecipeError, match=r"student.path = .*'layer1.0.conv1.weight' holds NaN or"):
        build(recipe_of(tiny_recipe, student))
    with pytest.raises(RunError, match=r"layer1.0.conv1.weight' holds NaN or infinity"):
        read_backbone(backbone)
    with pytest.raises(RunError, match=r"layer1.0.conv1.weight' holds NaN or infinity"):
        read_model(model)


def test_a_run_records_what_its_student_started_from(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "start.safetensors"
    save_file(timm.create_model("resnet18", num_classes=0, **NARROW).state_dict(), file)
    recipe = recipe_of({**tiny_recipe, "train": {**tiny_recipe["train"], "lr": 1e-9}}, file)
    run = RunDir.create(recipe, tmp_path / "run")

    distill(recipe, run)

    assert run.manifest().student.file == str(file)
    start, end = load_file(file), load_file(run.backbone_file)
    name = "layer1.0.conv1.weight"
    assert torch.allclose(start[name], end[name], atol=1e-4)
