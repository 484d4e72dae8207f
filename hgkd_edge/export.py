"""Export a run: dense backbone -> verified ONNX -> TensorRT engine. The work is `exporters`'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporters import trt_build, verify
from hgkd_edge.console import console, track_steps
from hgkd_edge.data.augment import center_view, normalize
from hgkd_edge.data.sources import held_out_split, open_splits
from hgkd_edge.models.backbone import BackboneSpec, EmbeddingNet, load_embedding_net
from hgkd_edge.rundir import RunDir, file_sha256, write_json

__all__ = ["export_run"]

VERIFICATION_PHOTOS = 64


def export_run(run: RunDir, *, trt: bool = False, dynamic_batch: bool = True) -> dict[str, Any]:
    """Export a run's backbone to ONNX, prove it on held-out photos, and build an engine of it.

    Args:
        run: Its `backbone.safetensors` is exported.
        trt: Also build an engine with TensorRT or TensorRT-RTX, whichever is installed.
        dynamic_batch: Leave the batch axis free.

    Returns:
        Also written to the run's `export.json`.

    Raises:
        RunError: The run has no backbone yet.
        ExportError: A conversion or its verification failed, or TensorRT is not installed; the
            ONNX file and `export.json` are there all the same when only TensorRT is at fault.
    """
    run.require(
        run.backbone_file, mend=f"hgkd-edge distill {run.recipe_file} --run {run.path} --resume"
    )
    network = load_embedding_net(run.backbone_file)
    images = verification_images(run, network.spec)
    path = run.export_dir / f"{run.path.resolve().name}.fp32.onnx"
    exported, verification = verify.export_and_verify(
        network,
        path,
        images,
        dynamic_batch=dynamic_batch,
        output_names=["embedding"],
        metadata=_metadata(run, network),
    )
    run.add_artefact(path, made_from=[run.backbone_file])
    result: dict[str, Any] = {"onnx": exported.to_dict(), "verification": verification.to_dict()}
    write_json(run.path / "export.json", result)
    if trt:
        result["engine"] = _build_engine(run, path)
        write_json(run.path / "export.json", result)
    return result


def verification_images(run: RunDir, spec: BackboneSpec) -> np.ndarray:
    """Held-out photos as the network sees them, float32 [N, 3, H, W]; training ones if none."""
    splits = open_splits(run.recipe().data)
    source = splits[held_out_split(splits) or "train"]
    count = min(VERIFICATION_PHOTOS, len(source))
    spread = torch.linspace(0, len(source) - 1, count).long()  # photos lie sorted by class
    view = center_view(source.images[spread], size=spec.size)
    return normalize(view, spec.mean, spec.std).numpy()


def _metadata(run: RunDir, network: EmbeddingNet) -> dict[str, str]:
    """What the ONNX file itself says of its input and origin; values are JSON."""
    spec, data = network.spec, run.manifest().get("data", {})
    entries = {
        "model": spec.name,
        "input_size": [3, *spec.size],
        "mean": spec.mean,
        "std": spec.std,
        "classes": data.get("train", {}).get("classes", []),
        "backbone_sha256": file_sha256(run.backbone_file),
        "run": run.path.name,
    }
    return {f"hgkd_edge.{key}": json.dumps(value) for key, value in entries.items()}


def _build_engine(run: RunDir, onnx_path: Path) -> dict[str, Any]:
    engine_path = onnx_path.with_suffix(".plan")
    # Phases of a TensorRT build nest and are not announced, so steps are shown as they come.
    with track_steps("building the engine", total=1) as show:
        build = trt_build.build_engine(
            onnx_path,
            engine_path,
            progress=lambda phase, step, steps: show(0, f"{phase} {step}/{steps}"),
        )
        show(1, "")
    console.print(f"engine: {build.backend} {build.version}, {build.device}")
    run.add_artefact(engine_path, made_from=[onnx_path])
    return build.to_dict()
