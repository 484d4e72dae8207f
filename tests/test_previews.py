"""Pictures of what a student predicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hgkd_edge.data.sources import open_splits
from hgkd_edge.distillation.parts import build
from hgkd_edge.distillation.previews import save_previews
from hgkd_edge.distillation.setup import Setup, make_model, make_teacher
from hgkd_edge.models.decoder import upsample_mask
from hgkd_edge.models.student import Prediction
from hgkd_edge.recipe import Recipe


def set_up(raw: dict[str, Any], **sections: dict[str, Any]) -> Setup:
    """A setup without training; the teacher's weights are random."""
    recipe = Recipe.model_validate({**raw, **sections})
    parts = build(recipe, download=False)
    return Setup(recipe, parts, make_teacher(recipe, parts), open_splits(recipe.data), cache=None)


def pixels(folder: Path, name: str) -> np.ndarray:
    with Image.open(folder / f"{name}.webp") as image:
        return np.asarray(image.convert("RGB")).astype(int)


class Knows(torch.nn.Module):
    """Predicts the teacher's features of what the teacher sees, at half their length."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.teacher, self.blind = setup.teacher, setup.recipe.teacher.view == "visible"

    def forward(self, view: torch.Tensor, visible: torch.Tensor) -> Prediction:
        tokens = upsample_mask(visible, (8, 8)).flatten(1) if self.blind else None
        return Prediction(self.teacher.targets(view, tokens) / 2)


@pytest.mark.parametrize("view", ["full", "visible"])
def test_equal_features_have_equal_colors_and_the_cosine_of_one(
    tiny_recipe: dict[str, Any], tmp_path: Path, view: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hgkd_edge.distillation.previews.normalize", lambda view, *_: view)
    loss = {"where": "visible"} if view == "visible" else {}
    setup = set_up(tiny_recipe, loss=loss, teacher={**tiny_recipe["teacher"], "view": view})
    model = make_model(setup.recipe, setup.parts, setup.teacher)
    model.student = Knows(setup)
    model.register_parameter("anything", torch.nn.Parameter(torch.zeros(1)))

    save_previews(model, setup, tmp_path)

    about = json.loads((tmp_path / "previews.json").read_text())
    assert about["split"] == "test"
    assert about["sites"] == ("visible" if view == "visible" else "masked")
    assert about["cosine"] == pytest.approx([1.0] * 6, abs=1e-3)
    assert len(list(tmp_path.glob("*.webp"))) == 30
    teacher, student = pixels(tmp_path, "3-teacher"), pixels(tmp_path, "3-student")
    assert np.abs(teacher - student).max() <= 1
    assert teacher.std() > 10, "it shows something"
    hidden = (pixels(tmp_path, "3-teacher") == 128).all(axis=-1).mean()
    assert (hidden > 0.3) == (view == "visible")


def test_masked_patches_are_gray_and_the_others_are_those_of_the_image(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    setup = set_up(tiny_recipe, mask={"ratio": 0.5})

    save_previews(make_model(setup.recipe, setup.parts, setup.teacher), setup, tmp_path)

    image, visible = pixels(tmp_path, "0-image"), pixels(tmp_path, "0-visible")
    gray = np.abs(visible - 128).max(axis=-1) <= 3
    near = np.abs(image - visible).max(axis=-1) <= 24  # the files are lossy
    assert 0.4 < gray.mean() < 0.65
    assert (gray | near).mean() > 0.95


def test_a_student_of_pixels_only_has_no_features_to_show(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    setup = set_up(tiny_recipe, loss={"feature_weight": 0, "pixel_weight": 1})

    save_previews(make_model(setup.recipe, setup.parts, setup.teacher), setup, tmp_path / "none")

    assert not (tmp_path / "none").exists()
