from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from exporters.onnx_export import export_onnx
from hgkd_edge.errors import DataError, RunError
from hgkd_edge.models.backbone import BackboneSpec
from hgkd_edge.predict import predict
from hgkd_edge.tasks.base import ModelCard, save_model
from hgkd_edge.tasks.classify import Classification

SPEC = BackboneSpec("resnet18", 2, (64, 64), (0.5,) * 3, (0.25,) * 3, {"channels": [8, 16, 24, 32]})
CARD = ModelCard("classify", ("hat", "dress", "shirt"), SPEC)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One classifier as safetensors and as ONNX."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    network = Classification().create(CARD).eval()
    save_model(network, CARD, folder / "model.safetensors")
    entries = {
        "task": CARD.task,
        "classes": CARD.classes,
        "input_size": [3, *SPEC.size],
        "mean": SPEC.mean,
        "std": SPEC.std,
    }
    export_onnx(
        network,
        folder / "model.onnx",
        input_size=(3, *SPEC.size),
        output_names=["logits"],
        metadata={f"hgkd_edge.{key}": json.dumps(value) for key, value in entries.items()},
    )
    return {"torch": folder / "model.safetensors", "onnx": folder / "model.onnx"}


def test_every_runtime_gives_the_same_answers(
    models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    ours, theirs = (
        predict(models[kind], [photos / "test"], tmp_path / kind) for kind in ("torch", "onnx")
    )

    assert len(ours) == 18
    for one, other in zip(ours, theirs, strict=True):
        assert [label["name"] for label in one["labels"]] == [
            label["name"] for label in other["labels"]
        ]
        np.testing.assert_allclose(
            [label["probability"] for label in one["labels"]],
            [label["probability"] for label in other["labels"]],
            atol=1e-5,
        )


def test_pictures_and_json_are_left(models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    records = predict(models["onnx"], [photos / "test"], tmp_path / "out")

    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == records
    assert len({record["picture"] for record in records}) == len(records)
    for record in records:
        with Image.open(record["picture"]) as picture, Image.open(record["photo"]) as photo:
            assert picture.size == photo.size


def test_a_photo_that_cannot_be_read_is_named_and_the_others_are_answered(
    models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a photo")
    good = next((photos / "test").rglob("*.webp"))

    first, second = predict(models["onnx"], [broken, good], tmp_path / "out")

    assert "cannot be read" in first["error"]
    assert "labels" in second


def test_what_is_missing_is_said_in_one_line(
    models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="there is no such file or folder"):
        predict(models["onnx"], [tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(DataError, match="no image files"):
        predict(models["onnx"], [tmp_path], tmp_path / "out")
    with pytest.raises(RunError, match="there is no such file"):
        predict(tmp_path / "gone.onnx", [photos], tmp_path / "out")
    with pytest.raises(RunError, match="not a model file"):
        predict(tmp_path / "model.h5", [photos], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"task": "embed"}, "is a bare backbone"),
        ({"baked": ["preprocessing"]}, "its preprocessing is baked in"),
        ({"task": None}, "does not say which task"),
    ],
)
def test_a_file_that_does_not_answer_photos_says_so(
    models: dict[str, Path], photos: Path, tmp_path: Path, entries: dict[str, Any], said: str
) -> None:
    model = onnx.load(models["onnx"])
    known = {entry.key: entry.value for entry in model.metadata_props}
    for key, value in entries.items():
        known[f"hgkd_edge.{key}"] = json.dumps(value) if value else ""
    onnx.helper.set_model_props(model, known)
    onnx.save(model, tmp_path / "other.onnx")

    with pytest.raises(RunError, match=said):
        predict(tmp_path / "other.onnx", [photos / "test"], tmp_path / "out")


def test_answers_of_an_earlier_call_are_no_photos(
    models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos / "test", tmp_path / "photos")
    out = tmp_path / "photos" / "predictions"

    first, second = (predict(models["onnx"], [tmp_path / "photos"], out) for _ in range(2))

    assert len(first) == len(second) == 18


def test_photos_none_of_which_can_be_read_are_an_error(
    models: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not a photo")

    with pytest.raises(
        DataError, match="none of 1 photos can be read; the first, .*broken.jpg: cannot"
    ):
        predict(models["onnx"], [tmp_path / "broken.jpg"], tmp_path / "out")
    with pytest.raises(DataError, match="is a file"):
        predict(models["onnx"], [tmp_path], tmp_path / "broken.jpg")


def test_an_onnx_file_answers_without_torch(
    models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    """The base install has no torch, no torchvision, no timm."""
    program = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'timm', 'safetensors', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "from hgkd_edge.cli import main\n"
        f"sys.argv = ['hgkd-edge', 'predict', {str(models['onnx'])!r}, {str(photos / 'test')!r},"
        f" '--out', {str(tmp_path / 'out')!r}]\n"
        "main()\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 18
