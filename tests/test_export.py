"""Export of whole runs: a bare backbone, and fine-tuned models of the three tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporters.onnx_info import onnx_info, open_session
from exporters.openvino_export import openvino_metadata
from exporters.trt_build import available
from hgkd_edge.data.sources import open_splits
from hgkd_edge.distill import recalibrate_batchnorm
from hgkd_edge.export import export_run, verification_images
from hgkd_edge.export_options import ExportOptions
from hgkd_edge.finetune import finetune
from hgkd_edge.models.backbone import (
    BackboneSpec,
    EmbeddingNet,
    create_features,
    load_embedding_net,
    save_backbone,
)
from hgkd_edge.recipe import Recipe
from hgkd_edge.rundir import RunDir, file_sha256
from hgkd_edge.serving import open_served
from hgkd_edge.tasks.config import resolve
from tests.tasks.helpers import QUICK, SAMPLES

needs_trt = pytest.mark.skipif(not available(), reason="no TensorRT is installed")
DATA = {"segment": "nuclei", "detect": "bccd"}
SETTINGS = {
    "classify": ["train.epochs=40", "classify.probe_first=false"],
    "segment": ["data.image_size=64", "segment.binary=true", "train.epochs=6"],
    "detect": ["data.image_size=[64, 96]", "train.epochs=6"],
}
POSTPROCESSED = {"classify": "probabilities", "segment": "classes", "detect": "detections"}


SPEC = BackboneSpec("resnet18", 2, (64, 64), (0.5,) * 3, (0.25,) * 3, {"channels": [8, 16, 24, 32]})


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


@pytest.fixture
def run(photos: Path, tmp_path: Path) -> RunDir:
    """A run with a bare backbone."""
    return new_run(photos, tmp_path / "run")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Callable[[str], RunDir]:
    """A run fine-tuned for a task, once per module."""

    @cache
    def make(task: str) -> RunDir:
        made = new_run(photos, tmp_path_factory.mktemp(task) / "run")
        data = SAMPLES / DATA[task] if task in DATA else None
        finetune(resolve(made, task, data, "distilled", [*QUICK, *SETTINGS[task]]), made)
        return made

    return make


def files(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {Path(file["path"]).name: file for file in result["files"]}


def test_the_onnx_file_agrees_with_pytorch_at_any_batch_and_says_where_it_came_from(
    run: RunDir,
) -> None:
    result = export_run(run)

    network = load_embedding_net(run.backbone_file)
    images = verification_images(run, network.spec)
    path = Path(result["onnx"]["path"])
    session = open_session(path)
    for batch in (1, 3, 18):
        (got,) = session.run(None, {"images": images[:batch]})
        with torch.inference_mode():
            wanted = network(torch.from_numpy(images[:batch])).numpy()
        np.testing.assert_allclose(got, wanted, atol=1e-4)
    metadata = {key: json.loads(text) for key, text in onnx_info(path).metadata.items()}
    assert metadata["hgkd_edge.task"] == "embed"
    assert metadata["hgkd_edge.input_size"] == [3, 64, 64]
    assert metadata["hgkd_edge.weights_sha256"] == file_sha256(run.backbone_file)
    assert result["verification"]["passed"]
    assert result["verified_on"] == {"split": "test", "photos": 18}
    artefact = run.manifest()["artefacts"][f"export/{path.name}"]
    assert artefact["made_from"] == ["backbone.safetensors"]
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

    assert result["task"] == task
    assert all(f["verification"]["passed"] for f in result["files"] if f["kind"] != "engine")
    artefacts = made.manifest()["artefacts"]
    for name, file in files(result).items():
        assert artefacts[f"export/{name}"]["sha256"] == file["sha256"]
        assert Path(artefacts[f"export/{name}"]["made_from"][0]).name == file["made_from"]
    for name in files(result):
        if name.endswith(".onnx"):
            assert open_served(made.export_dir / name).task == task
        elif name.endswith(".xml"):
            told = openvino_metadata(made.export_dir / name)
            assert told == onnx_info(made.export_dir / "run.fp32.onnx").metadata
    assert ("engine" in result) == trt


@pytest.mark.parametrize("task", ["classify", "segment", "detect"])
def test_processing_at_both_ends_is_baked_in(tuned: Callable[[str], RunDir], task: str) -> None:
    made = tuned(task)

    result = export_run(
        made, ExportOptions(bake_preprocessing=True, bake_postprocessing=True, openvino=True)
    )

    baked = files(result)["run.fp32.baked.onnx"]
    assert baked["verification"]["passed"]
    assert files(result)["run.fp32.xml"]["verification"]["passed"]
    assert files(result)["run.fp32.xml"]["made_from"] == "run.fp32.baked.onnx"
    session = open_session(baked["path"])
    assert [output.name for output in session.get_outputs()] == [POSTPROCESSED[task]]
    frame = np.zeros((2, 75, 131, 3), np.uint8)
    assert np.isfinite(session.run(None, {"frames": frame})[0]).all()
