"""`recipes new`: recipes that load, follow docs/results.md, and are commented."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml
from typer.testing import CliRunner

from hgkd_edge.cli import app
from hgkd_edge.cli.recipes import _images_and_count
from hgkd_edge.errors import DataError, DeviceError, RecipeError
from hgkd_edge.recipe import Recipe
from hgkd_edge.recommend import Wish, count_images, recipe_for

RESULTS = Path(__file__).parent.parent / "docs" / "results.md"


def made(**wish: object) -> Recipe:
    return Recipe.model_validate(yaml.safe_load(recipe_for(Wish("photos", **wish))))  # type: ignore[arg-type]


def test_few_images_take_the_recipe_and_the_cache_that_results_recommend() -> None:
    row = next(line for line in RESULTS.read_text().splitlines() if "up to some 10,000" in line)

    recipe = made(count=3000)

    assert "`resnet18_dinov2_s` with `teacher.cache: 16`" in row
    assert recipe.teacher.name == "vit_small_patch14_dinov2.lvd142m"
    assert recipe.student.name == "resnet18"
    assert recipe.teacher.cache == 16
    assert recipe.mask.per_image == 1
    assert (recipe.mask.ratio, recipe.loss.embedding_weight) == (0, 1)


def test_more_images_take_no_cache_and_fewer_epochs() -> None:
    some, more = made(count=100_000), made(count=1_000_000)

    assert some.teacher.cache == more.teacher.cache == 0
    assert some.mask.per_image == 2
    assert some.train.epochs == 50
    assert more.train.epochs < some.train.epochs
    assert more.train.warmup_epochs < 5


@pytest.mark.parametrize(
    ("device", "student"),
    [
        ("orin-nano-8", "resnet18"),
        ("orin-nano", "resnet18"),
        ("agx-thor", "resnet18"),
        ("nano", "mobilenetv4_conv_medium"),
        ("phone", "mobilenetv4_conv_medium"),
        ("cpu", "efficientnet_lite0"),
    ],
)
def test_a_weaker_device_gets_a_smaller_student(device: str, student: str) -> None:
    assert made(count=1000, device=device).student.name == student


def test_an_own_teacher_needs_no_license_and_hidden_objects_get_masks() -> None:
    recipe = made(count=1000, teacher="own", hidden=True)

    assert recipe.teacher.weights == "pretrain"
    assert recipe.loss.embedding_weight == 0
    assert recipe.mask.ratio == 0.6
    assert "no restriction" in recipe_for(Wish("photos", 1000, teacher="own"))
    lengths = [made(count=n, teacher="own").teacher.pretrain.epochs for n in (1000, 1_000_000)]
    assert lengths == [400, 40]


def test_small_images_keep_their_resolution() -> None:
    recipe = made(count=50_000, side=32)
    own = made(count=50_000, side=32, teacher="own")

    assert (recipe.data.image_size, recipe.student.stem_stride) == (32, 1)
    assert own.teacher.args["patch_size"] == 4  # of cifar_small


def test_hidden_objects_get_the_ratio_that_their_grid_allows() -> None:
    assert made(count=50_000, side=32, teacher="own", hidden=True).mask.ratio == 0.4
    assert made(count=50_000, side=32, device="phone", hidden=True).mask.ratio == 0.6
    assert "; 0.4 is H-GKD" in recipe_for(Wish("photos", 50_000, side=32, teacher="own"))


def test_a_teacher_by_name_is_taken_and_its_license_pointed_out() -> None:
    text = recipe_for(Wish("photos", 1000, teacher="vit_base_patch16_clip_224.openai"))

    assert yaml.safe_load(text)["teacher"]["name"] == "vit_base_patch16_clip_224.openai"
    assert "license   that of vit_base_patch16_clip_224.openai" in text


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({"labels": "none"}, "hgkd-edge embed"),
        ({"labels": "one"}, "hgkd-edge evaluate --features"),
        ({"labels": "few"}, "--set classify.mixup=0"),
        ({"labels": "many"}, "finetune --task classify --data 'my photos'\n"),
        ({"labels": "few", "task": "detect"}, "finetune --task detect --data 'my photos'\n"),
    ],
)
def test_the_command_that_follows_depends_on_the_labels(
    wish: dict[str, str], expected: str
) -> None:
    assert expected in recipe_for(Wish("my photos", 1000, **wish))  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["hf", "webdataset"])
def test_the_command_that_follows_takes_shards_and_hub_datasets_from_the_recipe(
    source: str,
) -> None:
    text = recipe_for(Wish("org/set", 1000, labels="many", source=source))

    assert "finetune --task classify\n" in text
    assert "--data" not in text


def test_every_key_has_a_comment() -> None:
    lines = recipe_for(Wish("photos", 1000)).splitlines()

    keys = [line for line in lines if re.match(r" *\w+: \S", line)]
    assert len(keys) > 15
    assert all(re.search(r"  # \S", line) for line in keys)


@pytest.mark.parametrize("images", ["a\nname: evil", "c: #d", "'"])
def test_any_path_stays_a_value(images: str) -> None:
    recipe = yaml.safe_load(recipe_for(Wish(images, 10, labels="many")))

    assert recipe["data"]["path"] == images


def test_unknown_values_are_refused() -> None:
    with pytest.raises(RecipeError, match="--labels 'some'"):
        recipe_for(Wish("photos", 10, labels="some"))
    with pytest.raises(RecipeError, match="--task 'count'"):
        recipe_for(Wish("photos", 10, task="count"))
    with pytest.raises(DeviceError, match="device 'toaster'"):
        recipe_for(Wish("photos", 10, device="toaster"))


def test_images_are_counted_and_measured(photos: Path) -> None:
    count, side = count_images(photos)

    assert count == 66
    assert side == 96


def test_the_command_writes_a_recipe_and_the_schema_that_it_names(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["recipes", "new", "--images", str(photos), "--labels", "few"]

    done, again = (CliRunner().invoke(app, command) for _ in range(2))

    assert done.exit_code == 0, done.output
    text = Path("recipe.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    schema = json.loads(Path("recipe.schema.json").read_text())
    jsonschema.validate(yaml.safe_load(text), schema)
    assert isinstance(again.exception, RecipeError)
    assert json.loads(CliRunner().invoke(app, ["recipes", "schema"]).stdout) == schema


def test_no_images_at_the_prompt_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typer, "prompt", lambda question, **_: 0)

    with pytest.raises(DataError, match="number of images 0 is not above 0"):
        _images_and_count("org/set", None, "hf", ask=True)


def test_without_a_terminal_nothing_is_asked(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hgkd_edge", "recipes", "new"]

    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    assert done.returncode == 2
    assert done.stderr.startswith("error: --images is required")


def test_on_a_terminal_the_answers_make_the_recipe(photos: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "hgkd_edge", "recipes", "new", "--device", "cpu"]

    answers = f"{photos}\n\nfew\nown\ny\n"
    os.write(ours, answers.encode())
    done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "Device" not in done.stderr
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert recipe["data"]["path"] == str(photos)
    assert recipe["teacher"]["weights"] == "pretrain"
    assert recipe["mask"]["ratio"] == 0.6


def test_the_end_of_input_at_a_prompt_stops_the_command(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "hgkd_edge", "recipes", "new"]

    os.write(ours, b"\x04")  # Ctrl-D
    done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, cwd=tmp_path)

    assert done.returncode == 130
    assert done.stderr.splitlines()[-1].endswith("stopped")
    assert "bug" not in done.stderr


def test_the_images_of_a_table_are_counted(photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    files = sorted((photos / "train").rglob("*.webp"))
    table.write_text("image,labels\n" + "".join(f"{file},a;b\n{file},b\n" for file in files))

    count, side = count_images(table)
    text = recipe_for(Wish(str(table), count, side, task="multilabel", device="cpu", labels="many"))

    assert (count, side) == (2 * len(files), 96)
    assert f"finetune --task multilabel --data {table}" in text
