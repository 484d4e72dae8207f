"""Export of whole runs: a bare backbone, and fine-tuned models of the three tasks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from exporters import ExportError, VerificationFailed, _trt_compat, quantize, runtimes, sensitivity
from exporters.onnx_info import onnx_info
from exporters.runtimes.ort import OrtSession
from exporters.trt_build import available
from hgkd_edge import export_plan
from hgkd_edge.cli import app
from hgkd_edge.data.sources import open_splits
from hgkd_edge.errors import DataError
from hgkd_edge.evaluate import evaluate_model
from hgkd_edge.export import ExportIncomplete, export_run, verification_images
from hgkd_edge.export_options import ExportOptions, parse_frame
from hgkd_edge.export_record import ExportedFile, ExportRecord, VerifiedOn, read_exports
from hgkd_edge.exportable import load_exportable
from hgkd_edge.files import file_sha256
from hgkd_edge.finetune import finetune
from hgkd_edge.models.backbone import (
    BackboneSpec,
    EmbeddingNet,
    create_features,
    load_embedding_net,
    save_backbone,
)
from hgkd_edge.models.recalibrate import recalibrate_batchnorm
from hgkd_edge.recipe import Recipe
from hgkd_edge.rundir import RunDir
from hgkd_edge.tables import export_lines
from hgkd_edge.task_model import open_task_model
from hgkd_edge.tasks.config import resolve
from tests.started import Started
from tests.tasks.helpers import QUICK, SAMPLES

needs_trt = pytest.mark.skipif(not available(), reason="no TensorRT is installed")
DATA = {"segment": "nuclei", "detect": "bccd"}
SETTINGS = {
    "classify": [
        *("train.epochs=40", "train.batch_size=16", "classify.probe_first=false"),
        *("classify.augment=none", "classify.mixup=0", "classify.label_smoothing=0"),
    ],
    "segment": ["data.image_size=64", "segment.binary=true", "train.epochs=6"],
    "detect": ["data.image_size=[64, 96]", "train.epochs=6"],
}
POSTPROCESSED = {"classify": "probabilities", "segment": "classes", "detect": "detections"}


ARGS = {"channels": [8, 16, 24, 32], "layers": [1, 1, 1, 1]}
SPEC = BackboneSpec("resnet18", 2, (64, 64), (0.5,) * 3, (0.25,) * 3, ARGS)


def new_run(photos: Path, path: Path) -> RunDir:
    """A run whose backbone was never trained, but has BatchNorm statistics of real photos."""
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "data": {"source": "folder", "path": str(photos), "image_size": 64},
            "teacher": {"name": "vit_tiny_patch16_224", "weights": "pretrain"},
            "student": {"name": SPEC.name, "args": SPEC.args, "stem_stride": SPEC.stem_stride},
        }
    )
    torch.manual_seed(0)
    run = RunDir.create(recipe, path)
    network = EmbeddingNet(create_features(SPEC.name, stem_stride=2, args=SPEC.args), SPEC)
    recalibrate_batchnorm(network, open_splits(recipe.data)["train"], SPEC)
    save_backbone(network.features, SPEC, run.backbone_file)
    return run


pytestmark = pytest.mark.usefixtures("few_resamples")


@pytest.fixture(autouse=True)
def few_ranking_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgkd_edge.export_int8.RANKING_PHOTOS", 8)


@pytest.fixture
def run(photos: Path, tmp_path: Path) -> RunDir:
    """A run with a bare backbone."""
    return new_run(photos, tmp_path / "run")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Callable[[str], RunDir]:
    """A run fine-tuned for a task, once per module.

    The classifier is compared with its fp32 version on its training images. Of 18 unseen images a
    single near tie, which differs between CPUs, would be 5.6 % of the answers.
    """
    learned = tmp_path_factory.mktemp("learned")
    for split in ("train", "test"):
        shutil.copytree(photos / "train", learned / split)

    @cache
    def make(task: str) -> RunDir:
        made = new_run(learned, tmp_path_factory.mktemp(task) / "run")
        data = SAMPLES / DATA[task] if task in DATA else None
        finetune(resolve(made, task, data, "distilled", [*QUICK, *SETTINGS[task]]), made)
        return made

    return make


@pytest.fixture
def partly_labeled(photos: Path, tmp_path: Path) -> RunDir:
    """A fine-tuned run with labels in `train/` and `val/`, and none in `test/`."""
    data = tmp_path / "photos"
    shutil.copytree(photos / "train", data / "train")
    shutil.copytree(photos / "test", data / "val")
    (data / "test").mkdir()
    for photo in (photos / "test").rglob("*.webp"):
        shutil.copy(photo, data / "test")
    made = new_run(data, tmp_path / "run")
    finetune(resolve(made, "classify", None, "distilled", [*QUICK, "train.epochs=1"]), made)
    return made


def files(result: ExportRecord) -> dict[str, ExportedFile]:
    return {file.name: file for file in result.files}


def test_the_onnx_file_agrees_with_pytorch_at_any_batch_and_says_where_it_came_from(
    run: RunDir,
) -> None:
    result = export_run(run)

    network = load_embedding_net(run.backbone_file)
    images = verification_images(run)
    path = Path(result.onnx.path)
    session = OrtSession(path)
    for batch in (1, 3, 18):
        (got,) = session.infer({"images": images[:batch]}).values()
        with torch.inference_mode():
            wanted = network(torch.from_numpy(images[:batch])).numpy()
        np.testing.assert_allclose(got, wanted, atol=1e-4)
    metadata = {key: json.loads(text) for key, text in onnx_info(path).metadata.items()}
    assert metadata["hgkd_edge.task"] == "embed"
    assert metadata["hgkd_edge.input_size"] == [3, 64, 64]
    assert metadata["hgkd_edge.weights_sha256"] == file_sha256(run.backbone_file)
    assert result.verification.passed
    assert result.verified_on == VerifiedOn(split="test", photos=18)
    artifact = run.manifest().artifacts[f"export/{path.name}"]
    assert artifact.made_from == ["backbone.safetensors"]
    np.testing.assert_array_equal(np.load(run.export_dir / "images.npy"), images[:16])


@pytest.mark.parametrize("task", ["classify", "segment", "detect"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_fine_tuned_model_goes_to_every_runtime(
    tuned: Callable[[str], RunDir], task: str, precision: str
) -> None:
    made = tuned(task)
    calibration = 24 if precision == "int8" else None
    trt = precision == "int8" and bool(available())

    result = export_run(
        made, ExportOptions(precision=precision, openvino=True, trt=trt, calibration=calibration)
    )

    assert result.task == task
    assert all(f.verification.passed for f in result.files if f.kind != "engine")
    artifacts = made.manifest().artifacts
    for name, file in files(result).items():
        assert artifacts[f"export/{name}"].sha256 == file.sha256
        assert Path(artifacts[f"export/{name}"].made_from[0]).name == file.made_from
    for name in files(result):
        if name.endswith(".onnx"):
            assert open_task_model(made.export_dir / name).task == task
        elif name.endswith(".xml"):
            stated = runtimes.open(made.export_dir / name).metadata
            assert stated == onnx_info(made.export_dir / "run.fp32.onnx").metadata
    assert (result.engine is not None) == trt


@pytest.mark.parametrize("task", ["classify", "segment", "detect"])
def test_processing_at_both_ends_is_baked_in(tuned: Callable[[str], RunDir], task: str) -> None:
    made = tuned(task)

    result = export_run(
        made, ExportOptions(bake_preprocessing=True, bake_postprocessing=True, openvino=True)
    )

    baked = files(result)["run.fp32.baked.onnx"]
    assert baked.verification.passed
    assert files(result)["run.fp32.xml"].verification.passed
    assert files(result)["run.fp32.xml"].made_from == "run.fp32.baked.onnx"
    frame = np.zeros((2, 75, 131, 3), np.uint8)
    outputs = OrtSession(baked.path).infer({"frames": frame})
    assert list(outputs) == [POSTPROCESSED[task]]
    assert np.isfinite(outputs[POSTPROCESSED[task]]).all()


ENDS = [
    {"bake_preprocessing": True},
    {"bake_postprocessing": True},
    {"bake_preprocessing": True, "bake_postprocessing": True},
]


@pytest.mark.parametrize(
    ("task", "ends"),
    [("segment", ENDS[0]), ("classify", ENDS[1]), ("segment", ENDS[2]), ("detect", ENDS[2])],
)
def test_a_baked_file_is_proven_as_it_lies_on_disk(
    tuned: Callable[[str], RunDir], task: str, ends: dict[str, bool]
) -> None:
    result = export_run(tuned(task), ExportOptions(**ends))

    baked = files(result)["run.fp32.baked.onnx"]
    outputs = {output.name for output in onnx_info(baked.path).outputs}
    proven = {output.name for output in baked.verification.outputs}
    assert baked.sha256 == file_sha256(Path(baked.path))
    assert baked.verification.passed
    assert outputs <= proven


@pytest.mark.parametrize("ends", ENDS, ids=lambda ends: "-and-".join(ends))
def test_wrong_processing_inside_a_file_is_found(
    tuned: Callable[[str], RunDir], monkeypatch: pytest.MonkeyPatch, ends: dict[str, bool]
) -> None:
    made = tuned("segment")
    whole = export_plan.bake

    def wrong(plain: Path, path: Path, **given: Any) -> Any:
        if given["preprocessing"]:
            given["preprocessing"] = replace(given["preprocessing"], geometry="cover")
        whole(plain, path, **given)
        model = onnx.load(path)
        for node in model.graph.node:
            if node.op_type == "ArgMax":
                node.op_type = "ArgMin"
        onnx.save(model, path)
        return whole(plain, path.with_name("right.onnx"), **given)

    monkeypatch.setattr(export_plan, "bake", wrong)

    with pytest.raises(VerificationFailed, match=r"run\.fp32\.baked\.onnx"):
        export_run(made, ExportOptions(**ends))


def test_without_tensorrt_all_else_is_made_and_one_line_says_what_to_install(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_trt_compat, "available", lambda: ())

    with pytest.raises(ExportError, match="tensorrt") as caught:
        export_run(run, ExportOptions(trt=True, openvino=True))

    assert caught.value.exit_code == 2
    assert "hgkd-edge[trt" in caught.value.hint
    names = {"run.fp32.onnx", "run.fp32.xml", "run.fp32.bin"}
    assert {file.name for file in run.export_dir.glob("run.*")} == names
    assert len(json.loads((run.path / "export.json").read_text())["files"]) == 2


def test_int8_keeps_a_bound_and_says_what_it_cost(run: RunDir) -> None:
    result = export_run(
        run, ExportOptions(precision="int8", calibration=16, max_drop=100.0, flavors=("cpu",))
    )

    (int8,) = (file for file in result.files if file.precision == "int8")
    accuracy = int8.accuracy
    assert accuracy.metric == "k-NN top-1"
    assert accuracy.drop == accuracy.float_score - accuracy.score <= 100
    used = result.calibration
    assert (used.method, used.photos, used.source) == ("percentile", 16, "train")
    assert len(result.sensitivity["cpu"]) == 13


def test_a_score_is_of_the_held_out_images_that_have_labels(partly_labeled: RunDir) -> None:
    subject = load_exportable(partly_labeled)
    result = partly_labeled.finetune_result()
    evaluate_model(partly_labeled)

    score = subject.score(runtimes.open(subject.network, names=["logits"]).run)

    assert (subject.unseen, subject.scored_on.split, result.split) == ("test", "val", "val")
    assert score == pytest.approx(100 * result.single["top1"])
    assert [file.name for file in partly_labeled.pictures_dir.iterdir()] == ["confusion.png"]
    bare = load_exportable(partly_labeled, backbone=True)
    assert (bare.scored_on.split, bare.metric) == ("test", "mean cosine with the float network")
    shutil.rmtree(Path(partly_labeled.recipe().data.path) / "val")
    left = load_exportable(partly_labeled)
    assert left.scored_on is None
    with pytest.raises(ExportError, match="needs labeled images that were held out"):
        left.score(lambda images: {})


def test_images_of_other_classes_than_the_models_are_not_scored(partly_labeled: RunDir) -> None:
    data = Path(partly_labeled.recipe().data.path)
    shutil.copytree(data / "test", data / "train" / "a class that sorts first")

    subject = load_exportable(partly_labeled)

    with pytest.raises(DataError, match="the images have classes a class that sorts first, "):
        subject.score(runtimes.open(subject.network, names=["logits"]).run)
    assert len(subject.images(subject.unseen, 4)) == 4, "verification needs no labels"


def test_a_failed_conversion_is_put_aside_and_the_layer_named(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporters.quantize.Calibration.largest", lambda self, tensor: 1e-3)

    with pytest.raises(VerificationFailed, match="first layer that differs is 'features"):
        export_run(run, ExportOptions(precision="int8", calibration=8, flavors=("tensorrt",)))

    names = sorted(file.name for file in run.export_dir.glob("run.*"))
    assert names == ["run.fp32.onnx", "run.int8-tensorrt.failed-verification.onnx"]
    assert len(json.loads((run.path / "export.json").read_text())["files"]) == 1


@pytest.mark.parametrize("broken", ["tensorrt", "cpu"])
def test_a_flavor_that_fails_does_not_stop_the_other_files(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    zero_the_stem(monkeypatch, broken)
    other = "cpu" if broken == "tensorrt" else "tensorrt"
    options = ExportOptions(precision="int8", calibration=8, openvino=True, sensitivity=True)

    with pytest.raises(ExportIncomplete) as caught:
        export_run(run, options)

    record = read_exports(run)
    assert caught.value.exit_code == 1
    assert record.failed == caught.value.result.failed
    failed = [entry.file for entry in record.failed]
    made = {"run.fp32.onnx", f"run.int8-{other}.onnx"}
    if broken == "tensorrt":
        assert failed == ["run.int8-tensorrt.onnx"]
        made.add("run.int8.xml")
    else:  # OpenVINO's file is made from it
        assert failed == ["run.int8-cpu.onnx", "run.int8.xml"]
        assert "'run.int8-cpu.onnx' failed" in record.failed[1].reason
    assert files(record).keys() == made
    assert f"run.int8-{broken}.failed-verification.onnx" in record.failed[0].hint
    assert not (run.export_dir / f"run.int8-{broken}.onnx").exists()
    assert record.sensitivity.keys() == {"tensorrt", "cpu"}


def test_a_file_that_cannot_be_written_does_not_stop_the_other_files(run: RunDir) -> None:
    (run.export_dir / "run.fp32.xml").mkdir(parents=True)

    with pytest.raises(ExportIncomplete) as caught:
        export_run(run, ExportOptions(openvino=True, bundles=("triton",)))

    made = caught.value.result
    assert caught.value.exit_code == 2
    assert files(made).keys() == {"run.fp32.onnx"}
    assert [bundle.bundle for bundle in made.bundles] == ["triton"]
    assert [entry.file for entry in made.failed] == ["run.fp32.xml"]
    assert "run.fp32.xml': it is a folder" in made.failed[0].reason


def zero_the_stem(monkeypatch: pytest.MonkeyPatch, flavor: str) -> None:
    """Files of one INT8 flavor are written with a layer that computes nothing."""
    whole = quantize.quantized_graph

    def broken(model: Any, calibration: Any, **options: Any) -> Any:
        graph = whole(model, calibration, **options)
        if options["flavor"] == flavor and not options.get("only"):
            weights = (w for w in graph.graph.initializer if len(w.dims) == 4)
            weight = next(weights)
            values = onnx.numpy_helper.to_array(weight)
            weight.CopyFrom(onnx.numpy_helper.from_array(0 * values, weight.name))
        return graph

    monkeypatch.setattr(quantize, "quantized_graph", broken)
    monkeypatch.setattr(sensitivity, "quantized_graph", broken)


def test_the_command_prints_the_ranking_and_one_line_for_each_file_that_failed(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    zero_the_stem(monkeypatch, "cpu")
    options = ["--precision", "int8", "--calib", "8", "--openvino", "--max-drop", "100"]

    done = CliRunner().invoke(app, ["export", str(run.path), *options])

    assert done.exit_code == 1
    assert "most damaging layers in INT8 (cpu):" in done.stdout
    assert "onnx int8 tensorrt:" in done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert [line.split(": ")[1] for line in errors] == ["run.int8-cpu.onnx", "run.int8.xml"]
    assert "even with one layer quantized" in errors[0]
    hint = next(line for line in done.stderr.splitlines() if line.startswith("hint: "))
    assert "--max-drop" not in hint


@pytest.mark.parametrize("kind", ["empty", "missing", "unreadable"])
def test_calibration_images_that_cannot_be_had_are_one_clear_error(
    run: RunDir, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "photos"
    if kind != "missing":
        folder.mkdir()
    if kind == "unreadable":
        (folder / "a.jpg").write_bytes(b"not an image")

    with pytest.raises(DataError) as caught:
        export_run(run, ExportOptions(precision="int8", calibration_data=folder))

    assert str(folder) in caught.value.message
    assert "\n" not in caught.value.message
    assert not list(run.export_dir.glob("*int8*"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"precision": "int4"}, "--precision 'int4'"),
        ({"calibration": 100}, "--calib: only with --precision int8"),
        ({"max_drop": 0.5, "precision": "fp16"}, "--max-drop: only with"),
        ({"precision": "int8", "calibration": 0}, "--calib 0 is too small"),
        ({"precision": "int8", "max_drop": -1.0}, "--max-drop must be 0 or more, not -1"),
        ({"precision": "int8", "calibration_method": "guess"}, "--calib-method 'guess'"),
        ({"precision": "int8", "flavors": ("cpu",), "trt": True}, "flavor 'tensorrt'"),
        ({"precision": "int8", "flavors": ("tensorrt",), "openvino": True}, "flavor 'cpu'"),
        ({"dla": 0}, "--dla: only with --trt"),
        ({"dla": 0, "trt": True}, "fp16 or int8 only"),
        ({"dla": -1, "trt": True, "precision": "fp16"}, "--dla -1 is too small"),
        ({"opt_batch": 8, "max_batch": 4, "trt": True}, "--opt-batch 8 is more than --max-batch 4"),
        ({"workspace_mib": 10, "targets": ("8.6",)}, "--workspace, --target-cc: only with --trt"),
        ({"trt": True, "dynamic_size": True}, "--dynamic-size"),
        ({"trt": True, "bake_preprocessing": True}, "size of the frames"),
        ({"frame": (480, 640)}, "--frame"),
        ({"bake_preprocessing": True, "dynamic_size": True}, "--dynamic-size"),
    ],
)
def test_options_that_cannot_go_together_are_refused_in_one_line(
    options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ExportError, match=says) as caught:
        ExportOptions(**options)

    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("text", ["480", "480x", "axb", "0x4", "1x2x3"])
def test_a_frame_is_height_times_width(text: str) -> None:
    assert parse_frame("480x640") == (480, 640)
    with pytest.raises(ExportError, match="HEIGHTxWIDTH"):
        parse_frame(text)


def test_the_command_prints_its_record_alone_on_stdout(run: RunDir) -> None:
    options = ["--precision", "int8", "--calib", "8", "--flavor", "cpu", "--json"]

    done = Started("export", run.path, *options).end()
    refused = Started("export", run.path, "--calib", "8").end()

    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed == json.loads((run.path / "export.json").read_text())
    assert "calibrating 8/8" in done.stderr
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        "error: --calib: only with --precision int8",
        "hint: add --precision int8",
    ]


def test_a_folder_that_cannot_be_written_is_one_clear_error(run: RunDir) -> None:
    run.export_dir.write_text("in the way")

    with pytest.raises(ExportError, match="cannot write"):
        export_run(run)


@pytest.mark.parametrize(("backend", "expected"), [("tensorrt_rtx", True), ("tensorrt", False)])
def test_an_engine_for_desktop_gpus_is_reported_not_to_be_for_a_jetson(
    backend: str, expected: bool
) -> None:
    engine = {
        "kind": "engine", "precision": "fp16", "path": "net.plan", "size_bytes": 1,
        "verification": None, "backend": backend, "version": "1.0", "device": "a GPU",
    }  # fmt: skip
    on = {"photos": 1, "split": "test"}
    result = ExportRecord.model_validate({"verified_on": on, "files": [engine]})

    lines = "\n".join(export_lines(result))

    assert ("not for a Jetson" in lines) == expected
