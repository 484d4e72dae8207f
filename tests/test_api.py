"""The Python API: as short as the command line, lazy, and shown by a notebook."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hgkd_edge
from hgkd_edge.api.result import Result
from hgkd_edge.api.work import as_assignments
from hgkd_edge.recipe import load_recipe
from hgkd_edge.rundir import RunDir

ROOT = Path(__file__).parent.parent
QUICK = {"train.epochs": 1, "train.batch_size": 16, "train.warmup_epochs": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def run(tiny_recipe: dict[str, Any], folder: Path) -> hgkd_edge.Run:
    """A distilled and fine-tuned run, made once for this file."""
    path = folder / "tiny"
    if not path.exists():
        hgkd_edge.distill(tiny_recipe, {"train.epochs": 1}, run=path).finetune(
            "classify", overrides=QUICK
        )
    return hgkd_edge.load(path)


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_the_package_loads_nothing_else() -> None:
    code = (
        "import sys, hgkd_edge; dir(hgkd_edge); "
        "print(sorted({m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)))"
    )

    # A site's .pth files may load modules before any import.
    started = in_a_fresh_process(code.replace(", hgkd_edge; dir(hgkd_edge)", ""))
    loaded = in_a_fresh_process(code)

    assert set(ast.literal_eval(loaded)) - set(ast.literal_eval(started)) == {"hgkd_edge"}


def test_opening_runs_and_exported_files_needs_no_torch() -> None:
    code = (
        "import sys, hgkd_edge; [getattr(hgkd_edge, name) for name in hgkd_edge.__all__];"
        "print('torch' in sys.modules)"
    )

    assert in_a_fresh_process(code) == "False"


def test_no_module_has_the_name_of_a_function() -> None:
    """Importing `hgkd_edge.distill` would put the module in the place of the function."""
    modules = {path.stem for path in Path(hgkd_edge.__file__).parent.iterdir()}

    assert modules.isdisjoint(hgkd_edge.__all__)
    assert all(callable(getattr(hgkd_edge, name)) for name in hgkd_edge.__all__)


def test_every_public_name_is_documented_on_the_page_and_in_its_docstring() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")

    for name in hgkd_edge.__all__:
        assert getattr(hgkd_edge, name).__doc__, name
        assert f"`{name}" in page or f"{name}(" in page, name
    methods = [name for name in vars(hgkd_edge.Run) if not name.startswith("_")]
    assert [name for name in methods if f"run.{name}" not in page] == []


def test_every_error_a_user_can_catch_is_a_name_of_the_package() -> None:
    sources = [file for name in ("hgkd_edge", "exporters") for file in ROOT.glob(f"{name}/**/*.py")]
    bases = {
        node.name: {ast.unparse(base) for base in node.bases}
        for file in sources
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    known = {"UserError"}
    while more := {name for name, above in bases.items() if above & known} - known:
        known |= more

    assert {name for name in known if not name.startswith("_")} <= set(hgkd_edge.__all__)
    assert len(known) > 15


def test_options_are_those_of_the_dataclass_and_typed() -> None:
    export = inspect.signature(hgkd_edge.Run.export).parameters
    bench = inspect.signature(hgkd_edge.Run.bench).parameters

    assert [*export][1:] == [field.name for field in fields(hgkd_edge.ExportOptions)]
    assert [*bench][1:] == [field.name for field in fields(hgkd_edge.RunBenchOptions)]
    assert export["precision"].default == "fp32"
    with pytest.raises(TypeError, match="precission"):
        hgkd_edge.Run.export(None, precission="fp16")  # type: ignore[call-arg,arg-type]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'destill'"):
        hgkd_edge.destill  # noqa: B018


def test_errors_are_those_of_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(hgkd_edge.RecipeError, match="unknown key 'train.epoch'"):
        hgkd_edge.distill("demo", {"train.epoch": 1}, run=tmp_path / "run")
    with pytest.raises(hgkd_edge.RunError, match="cannot find run 'nothing'"):
        hgkd_edge.load("nothing")
    assert issubclass(hgkd_edge.RunError, hgkd_edge.UserError)
    assert not (tmp_path / "run").exists()


def test_training_without_pytorch_names_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import hgkd_edge\n"
        "try: hgkd_edge.distill('demo')\n"
        "except hgkd_edge.MissingPackageError as error: print(error.hint)"
    )

    assert 'pip install "hgkd-edge[train]"' in in_a_fresh_process(code)


def test_overrides_are_a_mapping_or_assignments() -> None:
    mapping = {"train.epochs": 3, "data.path": Path("a b"), "mask.ratio": {0: 0.5, 0.8: 0}}

    assert as_assignments(mapping) == [
        "train.epochs=3",
        'data.path="a b"',
        'mask.ratio={"0": 0.5, "0.8": 0}',
    ]
    assert as_assignments(["train.epochs=3"]) == ["train.epochs=3"]


def test_a_mapping_that_is_given_as_a_recipe_is_not_changed(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    before = json.dumps(tiny_recipe)

    with pytest.raises(hgkd_edge.RecipeError):
        hgkd_edge.distill(tiny_recipe, {"data.image_size": 64, "train.lr": -1}, run=tmp_path / "x")

    assert json.dumps(tiny_recipe) == before


def test_a_run_goes_from_images_to_scores_files_and_predictions(
    run: hgkd_edge.Run, photos: Path
) -> None:
    scores = run.evaluate()
    exported = run.export()
    measured = run.bench(duration_s=0.05, rounds=1)
    again = hgkd_edge.compare_measurements(measured["file"], measured["file"])
    guessed = hgkd_edge.estimate(hgkd_edge.BenchOptions(models=[str(run.path)]), ["orin-nano-8"])
    stages = hgkd_edge.measure_pipeline(photos / "test", run.path, count=2)
    page = run.report()
    found = run.predict(photos / "test")

    assert scores["split"] == "test"
    assert 0 <= scores["scores"]["top1"] <= 1
    assert [file["kind"] for file in exported["files"]] == ["onnx"]
    assert measured["sessions"][0]["measurements"]
    assert [row["ratio"] for row in again["rows"]] == [1.0]
    assert guessed["estimates"][0]["device"] == "orin-nano-8"
    assert "ESTIMATE" in str(guessed)
    assert stages["images"] == 2
    assert "by the network alone" in str(stages)
    assert page.is_file()
    assert len(found) == 18
    assert found[0].labels[0].probability > 0
    assert run.recipe.name == "tiny"
    assert "cosine" in str(run.distilled)


def test_frozen_features_are_scored_although_there_is_a_model(run: hgkd_edge.Run) -> None:
    scores = run.evaluate(features=True)

    assert 0 <= scores["distilled"]["linear_probe"] <= 1
    assert "linear probe" in str(scores)


def test_features_are_not_scored_of_a_named_file(tiny_recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe_file)
    run = hgkd_edge.Run(RunDir.create(recipe, tmp_path / "run"))

    with pytest.raises(hgkd_edge.RunError, match=r"--features .* not --model x\.onnx"):
        run.evaluate("x.onnx", features=True)


def test_features_of_images_are_a_result_with_arrays(
    run: hgkd_edge.Run, photos: Path, tmp_path: Path
) -> None:
    found = run.embed(photos / "test", tmp_path / "f.npz", neighbors=tmp_path / "f.png")
    alone = hgkd_edge.embed(run.path, [photos / "test"])

    assert found.features.shape == (len(found.files), found["width"]) == (18, 32)
    assert np.array_equal(np.load(tmp_path / "f.npz")["features"], found.features)
    assert (tmp_path / "f.png").is_file()
    assert np.array_equal(alone.features, found.features)
    assert alone["features"] is None
    assert str(alone) == "features: 18 images x 32"
    nearest = found.nearest(2)
    assert nearest.shape == (18, 2)
    assert all(row not in others for row, others in enumerate(nearest.tolist()))
    assert found.nearest(100).shape == (18, 17)


def test_exported_files_are_compared_by_runs_or_by_their_folders(
    run: hgkd_edge.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.export()
    run.bench(duration_s=0.05, rounds=1)

    by_run = hgkd_edge.compare(run)
    by_folder = hgkd_edge.compare(run.path, max_drop=2)

    rows = [row for group in by_run["groups"] for row in group["rows"]]
    assert any(row["score"] is not None and row["p50_ms"] for row in rows)
    assert Path(by_run["plot"]).is_file()
    assert by_folder["groups"] == by_run["groups"]
    assert by_folder["max_drop"] == 2
    assert "p50 ms" in str(by_run)
    with pytest.raises(hgkd_edge.RunError, match="cannot find run 'nothing'"):
        hgkd_edge.compare("nothing")


def test_a_teacher_is_pre_trained_once(tiny_recipe: dict[str, Any]) -> None:
    weights = hgkd_edge.pretrain(tiny_recipe, {"seed": 7})

    assert weights.name == "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert hgkd_edge.pretrain(tiny_recipe, {"seed": 7}) == weights
    assert weights.stat().st_mtime_ns == before
    with pytest.raises(hgkd_edge.RecipeError, match="there is nothing to pre-train"):
        hgkd_edge.pretrain("demo")


def test_a_finished_distillation_is_returned_as_it_is(run: hgkd_edge.Run) -> None:
    again = hgkd_edge.distill(run.recipe, run=run.path, resume=True)

    assert again.path.resolve() == run.path.resolve()
    assert again.distilled.to_dict() == run.distilled.to_dict()


def test_the_first_updates_are_checked_and_then_continued(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "checked"

    result = hgkd_edge.check(tiny_recipe, updates=3, run=path)
    run = hgkd_edge.distill(tiny_recipe, run=path, resume=True)

    assert result["signs"] or result["doubts"]
    assert "the whole run takes" in str(result)
    steps = [json.loads(line)["step"] for line in (path / "log.jsonl").open()]
    assert steps == list(range(1, 7))
    assert run.distilled["held_out"]


def test_images_are_files_folders_pictures_or_arrays(run: hgkd_edge.Run, photos: Path) -> None:
    file = sorted((photos / "test").rglob("*.webp"))[0]
    picture = Image.open(file)
    array = np.asarray(picture.convert("RGB"))
    model = hgkd_edge.load_model(run.path)

    found = model.predict([str(file), picture, array])

    assert [one.photo for one in found] == [str(file), "image 1", "image 2"]
    assert found[0].labels == found[1].labels == found[2].labels
    assert model.predict(array)[0].labels == found[0].labels
    assert found[0].picture is not None
    assert found[0].picture.size == picture.size
    with pytest.raises(hgkd_edge.DataError, match=r"image 0 is float32\[4, 4, 3\]"):
        model.predict(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(hgkd_edge.DataError, match="out takes image files"):
        model.predict(array, out="predictions")


def test_deep_pictures_are_scaled_as_their_files_are(
    run: hgkd_edge.Run, photos: Path, tmp_path: Path
) -> None:
    gray = np.asarray(Image.open(next((photos / "test").rglob("*.webp"))).convert("L"))
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    pictures = [deep, Image.fromarray(gray / np.float32(255)), Image.fromarray(gray.astype("f4"))]

    plain, file, scaled, of_floats, out_of_range = run.predict(
        [Image.fromarray(gray), tmp_path / "deep.png", *pictures]
    )

    assert plain.labels == file.labels == scaled.labels == of_floats.labels
    assert out_of_range.error.startswith("cannot be read as an image: float pixels from ")
    with pytest.raises(hgkd_edge.DataError, match="none of 1 image could .* can be 0 to 1 only"):
        run.predict(pictures[2])


def test_predictions_written_to_a_folder_are_those_returned(
    run: hgkd_edge.Run, photos: Path, tmp_path: Path
) -> None:
    found = run.predict(photos / "test", out=tmp_path / "out")

    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == found.records()
    assert found[0].labels == run.predict(found[0].photo)[0].labels
    assert found[0].picture is not None


def test_a_folder_is_watched_and_a_picture_is_no_video(
    run: hgkd_edge.Run, photos: Path, tmp_path: Path
) -> None:
    folder = next(one for one in (photos / "test").iterdir() if one.is_dir())

    found = hgkd_edge.watch(run.path, folder, tmp_path / "out", limit=2)

    assert found["frames"] == 2
    assert len(Path(found["answers"]).read_text().splitlines()) == 2
    assert "2 images in" in str(found)
    with pytest.raises(hgkd_edge.DataError, match="not a video, camera or URL"):
        hgkd_edge.predict_video(run.path, next(folder.iterdir()))


def test_a_data_set_is_checked(photos: Path) -> None:
    found = hgkd_edge.check_data(photos)

    assert found["tasks"] == ["classify"]
    assert found["splits"]["train"]["images"] == 48
    assert "3 classes" in str(found)


def test_an_unreadable_image_has_an_error_and_a_line(
    run: hgkd_edge.Run, photos: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad<b>.jpg"
    bad.write_bytes(b"no image")

    found = run.predict([bad, photos / "test"])

    assert found[0].error
    assert found[0].picture is None
    assert "<b>" not in found._repr_html_()
    with pytest.raises(hgkd_edge.DataError, match="none of 1 image"):
        run.predict(bad)


def test_a_notebook_shows_tables_and_pictures(run: hgkd_edge.Run, photos: Path) -> None:
    html = run._repr_html_()
    pictures = run.predict(photos / "test")._repr_html_()

    assert "classify on 18 images" in html
    assert "<pre" in html
    assert pictures.count("<img") == 12
    assert "and 6 more" in pictures


def test_a_notebook_shows_names_as_text() -> None:
    result = Result({"name": "<script>"}, lambda: ["<script>"])

    assert "<script>" not in result._repr_html_()
    assert repr(result) == "<script>"
    assert dict(result) == {"name": "<script>"}
