"""Every script in examples/, executed at small size: only its settings cell is replaced."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hgkd_edge.distillation.teacher_network import create_vit
from hgkd_edge.recipe_sections import TeacherConfig

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SAMPLES = ROOT / "tests" / "samples"

SMALL_TEACHER = {
    "name": "vit_tiny_patch16_224",
    "args": {"patch_size": 8, "depth": 1, "embed_dim": 48},
}
SMALL: dict[str, Any] = {
    "data.image_size": 64,
    "student.weights": "none",  # not from the hub
    "student.args": {"channels": [8, 16, 24, 32], "layers": [1, 1, 1, 1]},
    "student.stem_stride": 2,
    "student.decoder_width": 16,
    "train.epochs": 1,
    "train.batch_size": 16,
    "train.warmup_epochs": 0,
    "train.precision": "fp32",
}
QUICK = {"train.epochs": 1, "train.batch_size": 16, "train.warmup_epochs": 0}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An untrained teacher from a file, as the recipe's `teacher` section."""
    file = tmp_path_factory.mktemp("teacher") / "vit.safetensors"
    torch.manual_seed(0)
    network = create_vit(TeacherConfig(**SMALL_TEACHER))
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, file)
    return {**SMALL_TEACHER, "weights": "path", "path": str(file)}


def settings_of(name: str, photos: Path, teacher: dict[str, Any]) -> dict[str, Any]:
    """What replaces a script's settings."""
    from_teacher = {f"teacher.{key}": value for key, value in teacher.items()}
    distill = {**SMALL, **from_teacher}
    if name == "photos_to_jetson":
        data = {"data.path": str(photos), "teacher.cache": 2}
        quick = {"FINETUNE": QUICK, "PRECISION": "fp32", "UPDATES": 2}
        return {"PHOTOS": str(photos), "DISTILL": {**distill, **data}, **quick}
    if name == "segment":
        nuclei = str(SAMPLES / "nuclei")
        images = str(SAMPLES / "nuclei" / "images")
        return {
            "IMAGES": images,
            "LABELED": nuclei,
            "DISTILL": {**distill, "data.path": images},
            "FINETUNE": {**QUICK, "segment.binary": True},
            "PREDICT": str(next((SAMPLES / "nuclei" / "images").glob("*.jpg"))),
        }
    if name == "detect":
        images = str(SAMPLES / "bccd" / "JPEGImages")
        return {
            "IMAGES": images,
            "LABELED": str(SAMPLES / "bccd"),
            "DISTILL": {**distill, "data.path": images},
            "FINETUNE": QUICK,
            "PREDICT": str(next((SAMPLES / "bccd" / "JPEGImages").glob("*.jpg"))),
            "THRESHOLD": 0.0,
        }
    if name == "sparse_engine":
        return {"NAME": "resnet18", "SIZE": 64, "BATCH": 2, "REPEATS": 1}
    pretrain = {"epochs": 1, "batch_size": 16, "decoder_width": 32, "decoder_depth": 1}
    student = {
        "name": "resnet18",
        "args": {"channels": [8, 16, 24, 32], "layers": [1, 1, 1, 1]},
        "stem_stride": 2,
        "decoder_width": 16,
    }
    return {
        "IMAGES": str(photos),
        "TEACHER": teacher,
        "OWN_TEACHER": {**SMALL_TEACHER, "weights": "pretrain", "pretrain": pretrain},
        "STUDENT": student,
        "SIZE": 64,
        "TRAIN": {"epochs": 1, "batch_size": 16, "warmup_epochs": 0},
    }


def cells_of(script: Path) -> tuple[str, str]:
    """The settings cell, and the cells after it."""
    text = script.read_text(encoding="utf-8")
    _, settings, rest = re.split("^(?=# %% )", text, maxsplit=2, flags=re.M)
    return settings, rest


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_an_example_runs(
    script: Path,
    photos: Path,
    teacher: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings, rest = cells_of(script)
    values: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(settings, script, "exec"), values)
    small = settings_of(script.stem, photos, teacher)
    assert small.keys() <= values.keys()
    monkeypatch.chdir(tmp_path)

    exec(compile(rest, script, "exec"), values | small)

    assert capsys.readouterr().out.strip()


def test_every_example_is_listed() -> None:
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")

    listed = set(re.findall(r"^\| `(\w+\.py)`", page, re.M))
    assert listed == {script.name for script in EXAMPLES}


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_an_example_starts_with_its_purpose_and_its_settings(script: Path) -> None:
    text = script.read_text(encoding="utf-8")

    assert ast.get_docstring(ast.parse(text))
    assert text.split("# %% ")[1].startswith("Settings\n")
