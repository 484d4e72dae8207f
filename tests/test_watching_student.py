"""Held-out scores and pictures while a student is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hgkd_edge.distillation.distill import distill
from hgkd_edge.recipe import Recipe
from hgkd_edge.rundir import RunDir


def distilled(raw: dict[str, Any], folder: Path, **sections: dict[str, Any]) -> RunDir:
    merged = {key: {**raw.get(key, {}), **value} for key, value in sections.items()}
    recipe = Recipe.model_validate({**raw, **merged})
    run = RunDir.create(recipe, folder)
    distill(recipe, run)
    return run


def scores(run: RunDir) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in run.log_file.open()]
    return [record for record in records if "loss" not in record]


@pytest.mark.parametrize("cache", [0, 2])
def test_scores_and_pictures_are_recorded_and_change_nothing(
    tiny_recipe: dict[str, Any], tmp_path: Path, cache: int
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    section = {"teacher": {"cache": cache}}
    blind = distilled(tiny_recipe, tmp_path / "blind", **section, train={"evaluate_every": 0})
    seen = distilled(tiny_recipe, tmp_path / "seen", **section, train={"evaluate_every": 1})

    (found,) = scores(seen)  # of two epochs, the last one is scored at the end
    assert found["step"] == 3
    assert 0 <= found["knn"] <= 1
    assert -1 <= found["held_out_cosine"] <= 1
    assert scores(blind) == []
    weights = [load_file(run.backbone_file) for run in (blind, seen)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    events = EventAccumulator(str(seen.path / "tensorboard"))
    events.Reload()
    (name,) = events.Tags()["images"]
    (picture,) = events.Images(name)
    assert (picture.width, picture.height) == (5 * 64, 6 * 64)  # panels x images
    assert [event.value for event in events.Scalars("knn")] == pytest.approx([found["knn"]])


def test_without_labels_or_a_teacher_there_is_nothing_to_score(
    tiny_recipe: dict[str, Any], photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "unlabeled"
    folder.mkdir()
    for file in (photos / "train").rglob("*.webp"):
        (folder / file.name).write_bytes(file.read_bytes())
    only_pixels = {"feature_weight": 0, "pixel_weight": 1}

    run = distilled(
        tiny_recipe,
        tmp_path / "run",
        data={"path": str(folder)},
        loss=only_pixels,
        train={"evaluate_every": 1},
    )

    assert scores(run) == []
