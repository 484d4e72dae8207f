"""Quantization-aware fine-tuning of a whole run, from the float model to proven INT8 files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from exporters import runtimes
from exporters.verify import verify_onnx
from hgkd_edge.cli import app
from hgkd_edge.errors import RunError
from hgkd_edge.export import export_run
from hgkd_edge.export_options import ExportOptions
from hgkd_edge.exportable import load_exportable
from hgkd_edge.files import file_sha256
from hgkd_edge.finetune import finetune, load_model
from hgkd_edge.models.backbone import BackboneSpec
from hgkd_edge.rundir import RunDir
from hgkd_edge.tasks import config as settings
from hgkd_edge.tasks.base import ModelCard, read_model, save_model
from hgkd_edge.tasks.classify import Classifier
from tests.tasks.conftest import untrained
from tests.tasks.helpers import check_resume_is_exact

needs_modelopt = pytest.mark.skipif(find_spec("modelopt") is None, reason="needs the extra qat")
QUICK = ["train.precision=fp32", "train.layer_decay=1", "classify.augment=none"]
INNER_LAYERS = [f"layer{i}.{j}.conv2" for i in (1, 2, 3, 4) for j in (0, 1)]  # no skip branch
SPEC = BackboneSpec("resnet18", 4, (32, 32), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run with a classifier that has learned something."""
    run = untrained(tmp_path_factory.mktemp("qat") / "demo")
    overrides = [*QUICK, "train.epochs=2", "train.lr=3e-3", "classify.probe_first=false"]
    finetune(settings.resolve(run, "classify", None, "distilled", overrides), run)
    return run


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    return load_file(run.model_file)


@needs_modelopt
def test_a_quantization_aware_run_exports_int8_files_of_the_score_that_training_saw(
    tuned: RunDir,
) -> None:
    made = tuned.branch("qat")
    few = ["train.epochs=1", "label_share=0.25", "qat.calibration=64"]
    result = finetune(settings.quantization_aware(tuned, few), made)

    exported = export_run(made, ExportOptions(precision="int8", openvino=True, calibration=64))

    _, card = read_model(made.model_file)
    origin = made.manifest().quantization_aware
    assert origin.model_sha256 == file_sha256(tuned.model_file)
    assert origin.library.startswith("nvidia-modelopt ")
    assert len(card.input_ranges) == exported.calibration.learned_inputs > 0
    assert weights(made).keys() == weights(tuned).keys(), "a plain timm classifier"
    assert exported.calibration.method == "percentile"
    score = load_exportable(made).score
    files = [file.path for file in exported.files if file.precision == "int8"]
    assert [Path(file).suffix for file in files] == [".onnx", ".onnx", ".xml"]
    for file in files:
        assert score(runtimes.open(file).run) == pytest.approx(100 * result.int8_score, abs=3)


@needs_modelopt
def test_an_interrupted_training_resumes_exactly(
    tuned: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings.quantization_aware(tuned, ["train.epochs=3", "label_share=0.1"])

    check_resume_is_exact(tuned.branch("qat"), chosen, Classifier, monkeypatch)


def test_only_a_fine_tuned_float_model_can_be_trained_further(run: RunDir) -> None:
    with pytest.raises(RunError, match="has no model.safetensors yet"):
        settings.quantization_aware(run)


def pretend_tuned(run: RunDir, *overrides: str) -> None:
    """Files as a fine-tuning leaves them, without one."""
    chosen = settings.resolve(run, "classify", None, "distilled", overrides)
    run.finetune_file.write_text(json.dumps(chosen.model_dump(mode="json")))
    run.model_file.write_bytes(b"")


def test_settings_are_those_of_the_float_model_but_short_and_gentle(run: RunDir) -> None:
    pretend_tuned(run, "train.epochs=30", "train.lr=1e-2", "classify.mixup=0.3")

    chosen = settings.quantization_aware(run, ["qat.calibration=64"])

    assert (chosen.train.epochs, chosen.train.lr, chosen.train.ema) == (6, 1e-3, 0)
    assert (chosen.classify.mixup, chosen.classify.probe_first) == (0.3, False)
    assert chosen.qat == settings.QatConfig(model=run.model_file.resolve(), calibration=64)


@pytest.mark.parametrize("override", ["task=segment", "init=timm"])
def test_the_task_and_the_start_are_those_of_the_float_model(run: RunDir, override: str) -> None:
    pretend_tuned(run)

    with pytest.raises(RunError, match="--qat keeps"):
        settings.quantization_aware(run, [override])


def test_a_quantization_aware_model_is_not_trained_twice(run: RunDir) -> None:
    pretend_tuned(run, "qat.model=model.safetensors")

    with pytest.raises(RunError, match="quantization-aware already"):
        settings.quantization_aware(run)


def test_without_modelopt_the_command_names_the_extra_and_leaves_no_folder(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "modelopt.torch.quantization", None)
    pretend_tuned(run)

    result = CliRunner().invoke(app, ["finetune", str(run.path), "--qat"])

    assert "finetune --qat needs the package 'modelopt'" in str(result.exception)
    assert [folder.name for folder in run.path.parent.iterdir() if folder.is_dir()] == ["demo"]


def test_ranges_travel_in_the_model_file(tmp_path: Path) -> None:
    card = ModelCard("classify", ("a", "b"), SPEC, {"layer1.0.conv1": 1.5})

    save_model(torch.nn.Linear(2, 2), card, tmp_path / "model.safetensors")

    assert read_model(tmp_path / "model.safetensors")[1] == card


@pytest.mark.parametrize("size", [-1.0, float("nan"), float("inf")])
def test_ranges_that_are_no_sizes_are_refused(tmp_path: Path, size: float) -> None:
    card = ModelCard("classify", ("a", "b"), SPEC, {"layer1.0.conv1": size})
    save_model(torch.nn.Linear(2, 2), card, tmp_path / "model.safetensors")

    with pytest.raises(RunError):
        read_model(tmp_path / "model.safetensors")


def test_int8_files_are_proven_against_the_network_that_clips_not_against_the_float_one(
    tuned: RunDir, tmp_path: Path
) -> None:
    run = RunDir(Path(shutil.copytree(tuned.path, tmp_path / "clips")))
    network, card = load_model(run.model_file)
    subject = load_exportable(run)
    images = subject.images("train", 64)
    ranges = dict.fromkeys(INNER_LAYERS, 0.0)
    for name in ranges:
        network.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: ranges.update(
                {name: max(ranges[name], inputs[0].abs().max().item())}
            )
        )
    with torch.no_grad():
        network(torch.from_numpy(images))
    clipping = {name: 0.002 * largest for name, largest in ranges.items()}
    save_model(load_model(run.model_file)[0], replace(card, input_ranges=clipping), run.model_file)
    run.add_artifact(run.model_file)

    exported = export_run(run, ExportOptions(precision="int8", flavors=("tensorrt",)))

    quantized = next(file for file in exported.files if file.precision == "int8")
    assert quantized.verification is not None
    assert quantized.verification.passed
    fp32 = run.export_dir / quantized.made_from
    assert not verify_onnx(fp32, quantized.path, images, precision="int8").passed
