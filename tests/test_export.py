from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from exporters import ExportError
from hgkd_edge.distill import distill
from hgkd_edge.evaluate import evaluate_features
from hgkd_edge.export import export_run, verification_images
from hgkd_edge.models.backbone import load_embedding_net
from hgkd_edge.recipe import Recipe
from hgkd_edge.rundir import RunDir, file_sha256


@pytest.fixture
def run(tiny_recipe: dict[str, Any], tmp_path: Path) -> RunDir:
    recipe = Recipe.model_validate(tiny_recipe)
    run = RunDir.create(recipe, tmp_path / "run")
    distill(recipe, run)
    return run


def test_the_onnx_file_agrees_with_pytorch_at_any_batch_and_says_where_it_came_from(
    run: RunDir,
) -> None:
    result = export_run(run)

    network = load_embedding_net(run.backbone_file)
    images = verification_images(run, network.spec)
    path = Path(result["onnx"]["path"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 3, 18):
        (got,) = session.run(None, {"images": images[:batch]})
        with torch.inference_mode():
            wanted = network(torch.from_numpy(images[:batch])).numpy()
        np.testing.assert_allclose(got, wanted, atol=1e-4)
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(metadata["hgkd_edge.input_size"]) == [3, 64, 64]
    assert json.loads(metadata["hgkd_edge.backbone_sha256"]) == file_sha256(run.backbone_file)
    assert result["verification"]["passed"]
    artefact = run.manifest()["artefacts"][f"export/{path.name}"]
    assert artefact["made_from"] == ["backbone.safetensors"]


def test_an_engine_is_built_with_whichever_tensorrt_is_installed(run: RunDir) -> None:
    result = export_run(run, trt=True)

    engine = result["engine"]
    assert Path(engine["path"]).stat().st_size == engine["size_bytes"]
    assert engine["backend"] in ("tensorrt", "tensorrt_rtx")
    assert json.loads((run.path / "export.json").read_text())["engine"]["sha256"]


def test_without_tensorrt_the_onnx_is_made_and_one_line_says_what_to_install(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporters.trt_build.choose", _nothing_installed)

    with pytest.raises(ExportError, match="hgkd-edge\\[trt"):
        export_run(run, trt=True)

    assert list(run.export_dir.glob("*.onnx"))
    assert json.loads((run.path / "export.json").read_text())["verification"]["passed"]


def _nothing_installed(backend: str | None) -> None:
    from exporters import _trt_compat

    original = _trt_compat.available
    try:
        _trt_compat.available = lambda: ()
        _trt_compat.choose(backend)
    finally:
        _trt_compat.available = original


def test_evaluation_needs_labels_and_says_so(
    tiny_recipe: dict[str, Any], photos: Path, tmp_path: Path
) -> None:
    from hgkd_edge.errors import DataError

    tiny_recipe["data"]["path"] = str(photos / "train" / "dress")
    recipe = Recipe.model_validate(tiny_recipe)
    run = RunDir.create(recipe, tmp_path / "unlabelled")
    distill(recipe, run)

    with pytest.raises(DataError, match="labelled photos"):
        evaluate_features(run)


def test_evaluation_compares_with_the_untrained_network_and_the_majority(run: RunDir) -> None:
    result = evaluate_features(run)

    assert result["split"] == "test"
    assert result["photos"] == {"train": 48, "test": 18}
    assert result["majority"] == pytest.approx(1 / 3)
    for name in ("distilled", "untrained"):
        assert 0 <= result[name]["knn"] <= 1
        assert 0 <= result[name]["linear_probe"] <= 1
