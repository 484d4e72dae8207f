"""The arms of the study are recipes that can be read. Its results are in docs/lab-notebook.md."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file

from benchmarks.study import equal_time, objectives, static_camera, teacher_time
from benchmarks.study.__main__ import HERE
from benchmarks.study.arms import ABLATION, ARMS, EQUAL_TIME, STATIC_CAMERA, spelled
from benchmarks.study.protocols import PROTOCOLS, Protocol
from benchmarks.study.report import read_cells, report
from hgkd_edge.distillation.parts import build
from hgkd_edge.files import write_json
from hgkd_edge.recipe import Recipe, load_recipe


@pytest.mark.parametrize("base", PROTOCOLS)
def test_every_arm_and_change_is_a_recipe(base: str) -> None:
    file = HERE / f"{base}.yaml"
    epochs = load_recipe(file).train.epochs

    for name, changes in {**ARMS, **ABLATION}.items():
        recipe = load_recipe(file, spelled(changes, epochs))
        assert recipe.name == base, name
        masks = recipe.mask.per_image
        times = 10 if "ten times" in name else 2 if masks == 4 else 1
        assert recipe.train.epochs * masks == epochs * times, name


def test_the_report_shows_every_cell_that_is_committed() -> None:
    cells = read_cells(HERE / "cells")

    printed = report(HERE / "cells")

    assert len(cells) > 50
    assert all(f"| {cell['arm']} |" in printed for cell in cells)
    assert all(f"- {cell['machine']}" in printed for cell in cells)
    teachers = read_cells(HERE / "cells", "objective")
    assert {cell["objective"] for cell in teachers} == {"mae", "ibot"}
    for cell in teachers:
        assert f"| {100 * cell['knn']:.1f} | {100 * cell['linear_probe']:.1f} |" in printed


def test_frames_of_the_static_camera_differ_by_an_object_and_little_else(tmp_path: Path) -> None:
    counts = {"train": 12, "test": 8}

    folders = [static_camera.render(tmp_path / name, counts) for name in ("one", "other")]

    one, other = (sorted(folder.rglob("*.png")) for folder in folders)
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in other]
    assert {file.parent.name for file in one} <= {*static_camera.KINDS, "none"}
    assert {split: len(list((folders[0] / split).rglob("*.png"))) for split in counts} == counts
    frames = np.stack([np.asarray(Image.open(file), float) for file in one])
    still = (np.abs(frames - np.median(frames, axis=0)) < 25).mean()
    assert 0.85 < still < 1


@pytest.mark.parametrize("setting", STATIC_CAMERA)
def test_every_setting_of_the_static_camera_is_a_recipe(setting: str) -> None:
    assert load_recipe(static_camera.RECIPE, STATIC_CAMERA[setting]).name in PROTOCOLS


def test_a_masked_stage_takes_its_share_of_the_time() -> None:
    stages = equal_time.staged(0.75, 0.5, masked=1.0, dense=3.0)

    (start, first), (change, second) = stages.items()
    assert (start, first, second) == (0.0, 0.75, 0.0)
    assert change * 1.0 == pytest.approx((1 - change) * 3.0, rel=1e-3)
    assert equal_time.staged(0.0, 0.0, masked=1.0, dense=3.0) == {0.0: 0.0}


@pytest.fixture
def costs(tmp_path: Path) -> equal_time.Costs:
    """Measured elsewhere: nothing is timed here."""
    base = load_recipe(HERE / "imagenette.yaml")
    known = equal_time.Costs(tmp_path / "costs.json", base)
    known.seconds = {"tokens 0": 0.7, "tokens 0.5": 0.5, "tokens 0.75": 0.25, "pixels 0.6": 0.4}
    return known


@pytest.mark.parametrize("name", EQUAL_TIME)
def test_every_arm_gets_the_same_time(name: str, costs: equal_time.Costs) -> None:
    arm = EQUAL_TIME[name]

    recipe = equal_time.recipe_of(name, costs.base, 1, 10, 1000, costs)

    passes = recipe.train.epochs * (1000 // recipe.train.batch_size)
    updates = passes * recipe.mask.per_image
    stages = list(recipe.mask.stages.items())
    ends = [start for start, _ in stages[1:]] + [1.0]
    seconds = sum(
        updates * (end - start) * costs.of(arm, ratio)
        for (start, ratio), end in zip(stages, ends, strict=True)
    )
    assert recipe.seed == 1
    if arm.same_updates_as:
        other = equal_time.recipe_of(arm.same_updates_as, costs.base, 1, 10, 1000, costs)
        assert recipe.train.epochs == other.train.epochs
        assert seconds < 500
    else:
        assert seconds == pytest.approx(600, rel=0.05)


def test_the_time_of_an_update_in_a_training_is_that_of_the_log(
    tiny_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.model_validate({**tiny_recipe, "mask": {"per_image": 2}})
    rates = []
    first_updates = equal_time.first_updates

    def spy(*arguments: Any) -> Any:
        found = first_updates(*arguments)
        rates.append(found.images_per_s)
        return found

    monkeypatch.setattr(equal_time, "first_updates", spy)

    seconds = equal_time.seconds_in_training(recipe, updates=2)

    assert seconds == pytest.approx(16 / rates[0] / 2)


def test_an_arm_starts_from_the_given_weights_of_the_student(costs: equal_time.Costs) -> None:
    weights = "student.path=/weights/lite0.safetensors"
    base = load_recipe(HERE / "clothing10-lite0-imagenet.yaml", [weights])

    recipe = equal_time.recipe_of("dense, embedding", base, 0, 10, 1000, costs)

    assert recipe.student.path == Path("/weights/lite0.safetensors")


@pytest.fixture
def labeled(photos: Path, tmp_path: Path) -> Path:
    """The photos with their test split divided into `val` and `test`."""
    folder = tmp_path / "labeled"
    folder.mkdir()
    (folder / "train").symlink_to(photos / "train")
    for number, photo in enumerate(sorted((photos / "test").glob("*/*"))):
        home = folder / ("val", "test")[number % 2] / photo.parent.name
        home.mkdir(parents=True, exist_ok=True)
        (home / photo.name).symlink_to(photo)
    return folder


def test_students_of_equal_time_are_trained_and_scored(
    tiny_recipe: dict[str, Any],
    photos: Path,
    labeled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = tmp_path / "vit.safetensors"
    recipe = Recipe.model_validate(tiny_recipe)
    save_file({k: v.contiguous() for k, v in build(recipe).vit.state_dict().items()}, weights)
    teacher = {**tiny_recipe["teacher"], "weights": "path", "path": str(weights), "cache": 2}
    teacher.pop("pretrain")
    base = {**tiny_recipe, "name": "imagenette", "teacher": teacher}
    (tmp_path / "imagenette.yaml").write_text(yaml.safe_dump(base))
    monkeypatch.setattr(equal_time, "HERE", tmp_path)
    monkeypatch.setattr(equal_time, "training_photos", lambda *_: labeled)
    monkeypatch.setitem(PROTOCOLS, "imagenette", Protocol("classify", {1.0: 1}, batch_size=8))
    out = tmp_path / "out"

    def fill(*arms: str, minutes: list[float], choose: bool) -> None:
        arguments = SimpleNamespace(
            base="imagenette", data=photos, teacher=weights, minutes=minutes, seeds=[0],
            arms=arms, choose=choose, out=out, student=None, jobs=1,
        )  # fmt: skip
        equal_time.run(arguments)  # type: ignore[arg-type]

    out.mkdir()
    fill("teacher", "teacher, class token", "pixels", minutes=[0.001], choose=False)
    fill("masked half the time, embedding", minutes=[0.0005, 0.001], choose=True)

    cells = read_cells(out)
    scored = {cell["arm"]: cell for cell in cells if cell["kind"] == "equal"}
    assert scored.keys() == {"pixels", "teacher", "teacher, class token"}
    assert scored["teacher"]["val"] != scored["teacher, class token"]["val"]
    assert 0 <= scored["pixels"]["finetune"]["1.0"] <= 1
    assert all(0 <= cell["knn"] <= 1 for cell in scored.values())
    assert scored["teacher"]["finetune"] == {}  # a teacher is not fine-tuned
    printed = report(out)
    assert "### imagenette: 0.001 minutes of the student\n" in printed
    assert "### imagenette: 0.0005 minutes of the student, scored on `val`\n" in printed
    assert all(f"| {cell['arm']} | 1 |" in printed for cell in cells)
    finetuned = {key: value for key, value in cells[0].items() if key not in ("knn", "val")}
    (out / "finetuned.json").write_text(json.dumps(finetuned))  # as seeds of scratch are
    equal_time.plot(out, "imagenette", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    known = json.loads((out / "imagenette.costs.json").read_text())
    assert known.keys() == {"pixels 0.6", "tokens 0", "tokens 0.75"}


def test_cells_can_be_computed_in_processes(photos: Path, tmp_path: Path) -> None:
    data, weights, out = tmp_path / "data", tmp_path / "vit.safetensors", tmp_path / "out"
    out.mkdir()
    for split, count in {"train": 3, "val": 1}.items():
        for folder in (photos / "train").iterdir():
            (data / split / folder.name).mkdir(parents=True)
            for photo in sorted(folder.iterdir())[:count]:
                (data / split / folder.name / photo.name).symlink_to(photo)
    untrained = ["teacher.weights=pretrain", "teacher.path=null"]
    vit = build(load_recipe(HERE / "imagenette.yaml", untrained)).vit
    save_file({key: value.contiguous() for key, value in vit.state_dict().items()}, weights)
    write_json(out / "imagenette.costs.json", {"tokens 0": 0.7})

    arguments = SimpleNamespace(
        base="imagenette", data=data, teacher=weights, minutes=[1.0], seeds=[0], arms=["teacher"],
        choose=False, out=out, student=None, jobs=2, threads=1,
    )  # fmt: skip
    equal_time.run(arguments)  # type: ignore[arg-type]

    assert [cell["arm"] for cell in read_cells(out)] == ["teacher"]


def test_the_teachers_time_is_measured_with_the_weights_of_a_file(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe = Recipe.model_validate(tiny_recipe)
    weights = tmp_path / "vit.safetensors"
    save_file(build(recipe).vit.state_dict(), weights)

    assert teacher_time.seconds_per_batch(recipe, weights, rounds=1) > 0


def test_objectives_of_a_teacher_get_the_epochs_that_fit(
    tiny_recipe: dict[str, Any], labeled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_recipe))
    asked = []

    def trained(recipe: Recipe) -> tuple[Path, float]:
        settings = recipe.teacher.pretrain
        asked.append((settings.objective, settings.label_epochs, settings.epochs))
        weights = tmp_path / "vit.safetensors"
        save_file(build(recipe).vit.state_dict(), weights)
        return weights, 5.0 + 10.0 * settings.epochs

    monkeypatch.setattr(objectives, "trained", trained)

    changes = ["teacher.pretrain.objective=mae"]
    result = objectives.compared(tmp_path / "tiny.yaml", labeled, changes, minutes=1.0)

    assert asked[-1] == ("mae", 0, 6)  # a minute of 10 s an epoch
    assert (result["epochs"], result["seconds"]) == (6, 65)
    assert 0 < result["knn"] <= 1
