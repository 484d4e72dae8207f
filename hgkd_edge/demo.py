"""The whole pipeline on bundled photos: distill, evaluate, export, build, measure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from exporters.trt_build import available
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.run import run_bench
from hgkd_edge.console import console
from hgkd_edge.distillation.distill import distill
from hgkd_edge.evaluate import evaluate_features
from hgkd_edge.export import export_run, verification_images
from hgkd_edge.export_options import ExportOptions
from hgkd_edge.models.backbone import load_features
from hgkd_edge.recipe import Recipe, find_recipe, load_recipe
from hgkd_edge.rundir import RunDir, write_json
from hgkd_edge.sparse import sparsify

__all__ = ["demo"]


def demo(path: Path | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run `recipes/demo.yaml` from images to latency.

    Returns:
        Every figure of the final table; also written to the run's `demo.json`.
    """
    recipe = load_recipe(find_recipe("demo"), overrides)
    run = RunDir.create(recipe, path)
    because = run.why_this_folder()
    console.print(f"run folder: {run.path}" + (f" ({because})" if because else ""), soft_wrap=True)
    with run.at_work():
        return _all_steps(recipe, run)


def _all_steps(recipe: Recipe, run: RunDir) -> dict[str, Any]:
    begin = time.monotonic()
    console.rule("1 of 4: distill the demo teacher into a small ResNet")
    result: dict[str, Any] = {"run": str(run.path), **distill(recipe, run)}
    console.rule("2 of 4: score the frozen backbone on held-out photos")
    result["evaluation"] = evaluate_features(run)
    console.rule("3 of 4: export, and prove that the numbers still agree")
    result["sparse_to_dense"] = sparse_to_dense_error(run)
    flavors = available()
    result["export"] = export_run(run, ExportOptions(trt=bool(flavors)))
    if not flavors:
        result["engine_missing"] = 'pip install "hgkd-edge[trt-rtx]"'
    console.rule("4 of 4: measure on this CPU")
    result["latency"] = _latency(run)
    result["seconds"] = time.monotonic() - begin
    write_json(run.path / "demo.json", result)
    return result


def sparse_to_dense_error(run: RunDir) -> float:
    """Largest difference in any map between sparse (all visible) and dense encoder."""
    dense, spec = load_features(run.backbone_file)
    images = torch.from_numpy(verification_images(run, spec))
    encoder = sparsify(dense, backend="tiles")
    grid = [side // encoder.patch for side in spec.size]
    with torch.inference_mode():
        wanted = dense(images)
        maps = encoder.on_sites(images, torch.ones(len(images), *grid, dtype=torch.bool))
    return max((a - b).abs().max().item() for a, b in zip(wanted, maps, strict=True))


def _latency(run: RunDir) -> dict[str, Any]:
    """p50 and p99 in ms of one image at a time on ONNX Runtime, measured for two seconds."""
    _, spec = load_features(run.backbone_file)
    images = verification_images(run, spec)
    options = BenchOptions(models=(run.path,), images=images, duration_s=2.0)
    measured = run_bench(options).sessions[0].measurements[0]
    return {
        "p50_ms": measured.latency_ms.p50,
        "p99_ms": measured.latency_ms.p99,
        "runner": f"{measured.runner} {measured.runner_version}",
        "threads": measured.threads,
    }
