from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from exporters.bake import Preprocessing, bake
from exporters.onnx_export import export_onnx
from hgkd_edge.data.input_spec import PREFIX
from hgkd_edge.errors import DataError, ExportError, RunError
from hgkd_edge.export_plan import POSTPROCESSING
from hgkd_edge.files import engines_dir, file_sha256
from hgkd_edge.models.backbone import BackboneSpec
from hgkd_edge.predict import predict
from hgkd_edge.task_model import open_task_model
from hgkd_edge.tasks import answers
from hgkd_edge.tasks.base import ModelCard, save_model
from hgkd_edge.tasks.classify import Classification
from hgkd_edge.tasks.detect import ObjectDetection
from hgkd_edge.tasks.segment import Segmentation
from tests.conftest import NARROW

SPEC = BackboneSpec("resnet18", 2, (64, 64), (0.5,) * 3, (0.25,) * 3, NARROW)
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
        labels = zip(one.found.labels, other.found.labels, strict=True)
        for mine, its in labels:
            assert mine.name == its.name
            assert mine.probability == pytest.approx(its.probability, abs=1e-5)


def test_pictures_and_json_are_left(models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    made = predict(models["onnx"], [photos / "test"], tmp_path / "out")

    records = [one.to_dict() for one in made]
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == records
    assert len({one.picture for one in made}) == len(made)
    for one in made:
        with Image.open(one.picture) as picture, Image.open(one.photo) as photo:
            assert picture.size == photo.size


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_answered(
    models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    good = next((photos / "test").rglob("*.webp"))

    first, second = predict(models["onnx"], [broken, good], tmp_path / "out")

    assert "cannot be read" in first.error
    assert second.found.labels


def test_what_is_missing_is_reported_in_one_line(
    models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        predict(models["onnx"], [tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(DataError, match="no image files"):
        predict(models["onnx"], [tmp_path], tmp_path / "out")
    with pytest.raises(RunError, match="no such file"):
        predict(tmp_path / "gone.onnx", [photos], tmp_path / "out")
    with pytest.raises(RunError, match="not a model file"):
        predict(tmp_path / "model.h5", [photos], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_output_may_lie_above_or_below_the_images_but_not_among_them(
    models: dict[str, Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(photos / "test" / "dress", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    images = [Path("photos")]
    count = len(list(images[0].iterdir()))

    for out in (".", "photos/out", "photos/out"):  # the second time with pictures of the first
        assert len(predict(models["onnx"], images, Path(out))) == count
    with pytest.raises(DataError, match="--out photos: is a folder of images"):
        predict(models["onnx"], images, Path("photos"))


def test_a_run_is_found_by_a_name_with_a_dot(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/demo.v2")
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("name: demo.v2\n")
    shutil.copy(models["torch"], run / "model.safetensors")

    assert open_task_model(Path("demo.v2")).classes == CARD.classes
    with pytest.raises(RunError, match=r"demo\.v3: not a model file"):
        open_task_model(Path("demo.v3"))


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"task": "embed"}, "is a backbone without a task"),
        ({"input_size": [3, 0, 64]}, "does not record its task"),
        ({"task": None}, "does not record its task"),
        ({"task": ["classify"]}, "does not record its task"),
        ({"classes": "abc"}, "does not record its task"),
        ({"classes": {"cat": 1}}, "does not record its task"),
        ({"classes": [["cat"]]}, "does not record its task"),
        ({"baked": "preprocessing"}, "does not record its task"),
        ({"frame": 7}, "does not record its task"),
        ({"frame": [-5, 0]}, "does not record its task"),
        ({"frame": [True, True]}, "does not record its task"),
        ({"input_size": [3, float("inf"), 64]}, "does not record its task"),
        ({"preprocessing": {"bits": 1e9}}, "does not record its task"),
        ({"preprocessing": {"bits": "8"}}, "does not record its task"),
    ],
)
def test_a_file_that_does_not_answer_images_says_so(
    models: dict[str, Path], photos: Path, tmp_path: Path, entries: dict[str, Any], expected: str
) -> None:
    model = onnx.load(models["onnx"])
    known = {entry.key: entry.value for entry in model.metadata_props}
    for key, value in entries.items():
        known[f"hgkd_edge.{key}"] = json.dumps(value) if value else ""
    onnx.helper.set_model_props(model, known)
    onnx.save(model, tmp_path / "other.onnx")

    with pytest.raises(RunError, match=expected):
        predict(tmp_path / "other.onnx", [photos / "test"], tmp_path / "out")


BAKED = {
    "pre": {"preprocessing": True},
    "post": {"postprocessing": True},
    "both": {"preprocessing": True, "postprocessing": True},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An untrained network of every task as ONNX."""
    folder = tmp_path_factory.mktemp("plain")
    for task in (Classification(), Segmentation(), ObjectDetection()):
        card = ModelCard(task.name, CARD.classes, SPEC)
        torch.manual_seed(3)
        own = {"task": json.dumps(card.task), "classes": json.dumps(card.classes)}
        entries = own | card.input.metadata()
        export_onnx(
            task.create(card).eval(),
            folder / f"{task.name}.onnx",
            input_size=(3, *SPEC.size),
            output_names=task.output_names,
            metadata={f"hgkd_edge.{key}": text for key, text in entries.items()},
        )
    return {file.stem: file for file in folder.iterdir()}


@pytest.mark.parametrize("ends", BAKED.values(), ids=BAKED)
@pytest.mark.parametrize("task", ["classify", "segment", "detect"])
def test_a_file_with_baked_processing_answers_as_the_plain_one(
    plain: dict[str, Path], photos: Path, tmp_path: Path, task: str, ends: dict[str, bool]
) -> None:
    geometry = "cover" if task == "classify" else "letterbox"
    post = POSTPROCESSING[task]
    bake(
        plain[task],
        tmp_path / "baked.onnx",
        preprocessing=Preprocessing(SPEC.mean, SPEC.std, geometry)
        if "preprocessing" in ends
        else None,
        postprocessing=post if "postprocessing" in ends else None,
        prefix=PREFIX,
    )

    wanted = predict(plain[task], [photos / "test"], tmp_path / "plain")
    got = predict(tmp_path / "baked.onnx", [photos / "test"], tmp_path / "baked")

    for one, other in zip(got, wanted, strict=True):
        if task == "classify":
            for ours, theirs in zip(one.found.labels, other.found.labels, strict=True):
                assert ours.probability == pytest.approx(theirs.probability, abs=0.02)
        elif task == "segment":
            maps = [np.asarray(Image.open(record.map)) for record in (one, other)]
            assert maps[0].shape == maps[1].shape
            assert (maps[0] == maps[1]).mean() > 0.9  # classes are enlarged, not their scores
        else:
            assert len(one.found.boxes) == len(other.found.boxes)
            for ours, theirs in zip(one.found.boxes, other.found.boxes, strict=True):
                np.testing.assert_allclose(ours.box, theirs.box, atol=2)


def test_a_file_for_frames_of_one_size_names_the_size(
    plain: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    file = sorted((photos / "test").rglob("*.webp"))[0]
    with Image.open(file) as photo:
        photo.convert("RGB").resize((120, 90)).save(tmp_path / "fits.png")
    fixed = Preprocessing(SPEC.mean, SPEC.std, frame=(90, 120))
    bake(plain["classify"], tmp_path / "baked.onnx", preprocessing=fixed, prefix=PREFIX)

    first, second = predict(
        tmp_path / "baked.onnx", [tmp_path / "fits.png", file], tmp_path / "out"
    )

    assert first.found.labels
    assert "the model takes frames of 120 x 90" in second.error


def test_a_threshold_that_the_file_cannot_follow_is_refused(
    plain: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    suppressed = POSTPROCESSING["detect"]
    bake(plain["detect"], tmp_path / "baked.onnx", postprocessing=suppressed, prefix=PREFIX)

    with pytest.raises(DataError, match="--threshold 0.1: the file keeps boxes of at least 0.4"):
        predict(tmp_path / "baked.onnx", [photos / "test"], tmp_path / "out", threshold=0.1)


WITHOUT_TORCH = (
    "import sys\n"
    "for name in ('torch', 'torchvision', 'timm', 'safetensors', 'matplotlib'):\n"
    "    sys.modules[name] = None\n"
    "from hgkd_edge.cli import main\n"
    "sys.argv = ['hgkd-edge', *sys.argv[1:]]\n"
    "main()\n"
)


def without_torch(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line as the base install runs it."""
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_run_answers_without_torch_from_its_own_onnx_file(
    models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (run / "export").mkdir(parents=True)
    (run / "recipe.yaml").write_text("name: run\n")
    shutil.copy(models["torch"], run / "model.safetensors")

    missing = without_torch("predict", run, photos / "test", "--out", tmp_path / "out")
    assert missing.returncode == 2
    assert "needs the package 'torch'" in missing.stderr

    model = onnx.load(models["onnx"])
    known = {entry.key: entry.value for entry in model.metadata_props}
    digest = file_sha256(run / "model.safetensors")
    onnx.helper.set_model_props(model, known | {"hgkd_edge.weights_sha256": json.dumps(digest)})
    onnx.save(model, run / "export" / "run.fp32.onnx")
    done = without_torch("predict", run, photos / "test", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "ONNX Runtime" in done.stderr

    with (run / "model.safetensors").open("ab") as stream:
        stream.write(b" ")
    stale = without_torch("predict", run, photos / "test", "--out", tmp_path / "out")
    assert stale.returncode == 2
    assert "was not exported from the run's present model" in stale.stderr


@pytest.mark.parametrize("fault", [RuntimeError("broken"), MemoryError(), KeyError("tag")])
def test_whatever_one_image_raises_the_others_are_answered(
    models: dict[str, Path],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
) -> None:
    load, files = answers.load_photo, sorted((photos / "test").rglob("*.webp"))[:3]

    def fails_once(path: Path, **options: Any) -> Image.Image:
        if path == files[1]:
            raise fault
        return load(path, **options)

    monkeypatch.setattr(answers, "load_photo", fails_once)

    first, second, third = predict(models["onnx"], files, tmp_path / "out")

    assert first.found.labels
    assert third.found.labels
    assert second.error


def test_an_image_with_the_longest_name_is_answered(
    models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    file = sorted((photos / "test").rglob("*.webp"))[0]
    longest = tmp_path / ("\u00fc" * 120 + ".webp")  # 245 bytes
    shutil.copy(file, longest)

    (made,) = predict(models["onnx"], [longest], tmp_path / "out")

    assert Path(made.picture).is_file()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"task": "nonsense"}, "no usable task"),
        ({"classes": [1, 2, 3]}, "no usable task"),
        ({"classes": ["a", "b"]}, "does not hold the network"),
    ],
)
def test_a_model_file_that_describes_another_network_is_refused_in_words(
    models: dict[str, Path], photos: Path, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    with safe_open(models["torch"], framework="pt") as stored:
        card = json.loads(stored.metadata()["hgkd_edge.model"]) | changes
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    metadata = {"format": "pt", "hgkd_edge.model": json.dumps(card)}
    save_file(tensors, tmp_path / "model.safetensors", metadata=metadata)

    with pytest.raises(RunError, match=expected):
        predict(tmp_path / "model.safetensors", [photos / "test"], tmp_path / "out")


def test_an_engine_from_elsewhere_needs_the_users_word(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path | None] = []

    def stop(path: Path, *, onnx_path: Path, built_here: Path | None) -> None:
        asked.append(built_here)
        raise RunError("stopped")

    monkeypatch.setattr("exporters.runtimes.tensorrt.load_engine", stop)
    shutil.copy(models["onnx"], tmp_path / "net.onnx")
    (tmp_path / "net.plan").write_bytes(b"engine")

    for trusted in (False, True):
        with pytest.raises(RunError, match="stopped"):
            open_task_model(tmp_path / "net.plan", trust_engine=trusted)

    assert asked == [engines_dir(), None]


def test_answers_of_an_earlier_call_are_no_images(
    models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos / "test", tmp_path / "photos")
    out = tmp_path / "photos" / "predictions"

    first, second = (predict(models["onnx"], [tmp_path / "photos"], out) for _ in range(2))

    assert len(first) == len(second) == 18


def test_classes_that_cannot_be_saved_are_refused_before_any_work(
    models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    model = replace(open_task_model(models["torch"]), classes=("hat", "top/shirt", "dress"))

    with pytest.raises(DataError, match="class 'top/shirt' cannot be the name of a folder"):
        predict(model, [photos / "test"], tmp_path / "out", save_as="folders")

    assert not (tmp_path / "out").exists()


def test_saved_labels_never_mix_with_those_of_an_earlier_call(
    models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    images, out = sorted((photos / "test").rglob("*.webp"))[:2], tmp_path / "out"
    predict(models["torch"], images, out, threshold=0, save_as="folders")
    (corrected,) = (path for path in (out / "labels").rglob("0000-*"))
    corrected.rename(out / "labels" / corrected.name)
    before = sorted(out.rglob("*"))

    with pytest.raises(DataError, match="labels' is in use") as caught:
        predict(models["torch"], images, out, threshold=0, save_as="folders")

    assert caught.value.hint == "name another --out"
    assert sorted(out.rglob("*")) == before


def test_images_none_of_which_can_be_read_are_an_error(
    models: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not an image")

    with pytest.raises(
        DataError, match="none of 1 image could be processed; the first, .*broken.jpg: cannot"
    ):
        predict(models["onnx"], [tmp_path / "broken.jpg"], tmp_path / "out")
    with pytest.raises(ExportError, match="cannot write '/proc/out/predictions.json'"):
        predict(models["onnx"], [tmp_path / "broken.jpg"], Path("/proc/out"))
    with pytest.raises(DataError, match="is a file"):
        predict(models["onnx"], [tmp_path], tmp_path / "broken.jpg")


def test_an_onnx_file_answers_without_torch(
    models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    """The base install has no torch, no torchvision, no timm."""
    done = without_torch("predict", models["onnx"], photos / "test", "--out", tmp_path / "out")

    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 18
