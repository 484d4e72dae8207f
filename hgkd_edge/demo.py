"""The whole pipeline on bundled photos: distill, evaluate, export, build, measure.

PyTorch is imported by the steps, when the plan is on the screen.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from hgkd_edge.console import console
from hgkd_edge.export_record import ExportRecord
from hgkd_edge.files import write_json
from hgkd_edge.manifest_record import HeldOutOrNone
from hgkd_edge.recipe import Recipe, find_recipe, load_recipe
from hgkd_edge.records import Record
from hgkd_edge.rundir import RunDir
from hgkd_edge.score_records import FeatureRecord

__all__ = ["DemoRecord", "demo"]

# Each step, and its usual seconds on two idle CPU cores.
STEPS = {
    "distill": ("distill the bundled teacher into a small ResNet-18", 125),
    "evaluate": ("score the frozen backbone on held-out photos", 6),
    "export": ("export, and compare every file with the network", 8),
    "bench": ("measure the latency on this CPU", 6),
}


class DemoLatency(Record):
    """One image at a time on this CPU: percentiles of its time in ms, and what ran it."""

    p50_ms: float
    p99_ms: float
    runner: str = ""
    threads: int | None = None


class DemoRecord(Record):
    """Every figure of the demo's table.

    `sparse_to_dense` is the largest difference in any map of the two encoders; `engine_missing` the
    command that installs TensorRT where no engine could be built.
    """

    run: str
    held_out: HeldOutOrNone = None
    warnings: list[str] = Field(default_factory=list)
    evaluation: FeatureRecord
    sparse_to_dense: float
    export: ExportRecord
    engine_missing: str = ""
    latency: DemoLatency
    seconds: float
    seconds_by_step: dict[str, float]


def demo(path: Path | None = None, overrides: Sequence[str] = ()) -> DemoRecord:
    """Run `recipes/demo.yaml` from images to latency.

    Returns:
        Every figure of the final table; also written to the run's `demo.json`.
    """
    recipe = load_recipe(find_recipe("demo"), overrides)
    run = RunDir.create(recipe, path)
    run.announce(run.why_this_folder())
    with run.at_work():
        return _all_steps(recipe, run)


def _all_steps(recipe: Recipe, run: RunDir) -> DemoRecord:
    _print_plan()
    seconds: dict[str, float] = {}
    with _step("distill", seconds):
        from hgkd_edge.distillation.distill import distill

        distilled = distill(recipe, run)
        assert distilled is not None, "a demo is one process"
    with _step("evaluate", seconds):
        from hgkd_edge.evaluate import evaluate_features

        evaluation = evaluate_features(run)
    with _step("export", seconds):
        from exporters.trt_build import available
        from hgkd_edge.export import export_run
        from hgkd_edge.export_options import ExportOptions

        error, flavors = sparse_to_dense_error(run), available()
        export = export_run(run, ExportOptions(trt=bool(flavors)))
    with _step("bench", seconds):
        latency = _latency(run)
    result = DemoRecord(
        run=str(run.path),
        held_out=distilled.held_out,
        evaluation=evaluation,
        sparse_to_dense=error,
        export=export,
        latency=latency,
        seconds=sum(seconds.values()),
        seconds_by_step=seconds,
    )
    if distilled.warnings:
        result.warnings = distilled.warnings
    if not flavors:
        result.engine_missing = 'pip install "hgkd-edge[trt-rtx]"'
    write_json(run.demo_file, result.to_dict())
    return result


def _print_plan() -> None:
    total = sum(usual for _, usual in STEPS.values())
    console.print(f"four steps, about {total} s on two recent CPU cores, twice that on older ones:")
    for number, (title, usual) in enumerate(STEPS.values(), 1):
        console.print(f"  {number}  {title:<56}{usual:>4} s")


@contextlib.contextmanager
def _step(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Announce a step, and record how long it takes."""
    title, _ = STEPS[name]
    console.rule(f"{list(STEPS).index(name) + 1} of {len(STEPS)}: {title}")
    begin = time.monotonic()
    yield
    seconds[name] = time.monotonic() - begin


def sparse_to_dense_error(run: RunDir) -> float:
    """Largest difference in any map between sparse (all visible) and dense encoder."""
    import torch

    from hgkd_edge.export import verification_images
    from hgkd_edge.models.backbone import load_features
    from hgkd_edge.sparse import sparsify

    dense, spec = load_features(run.backbone_file)
    images = torch.from_numpy(verification_images(run))
    encoder = sparsify(dense, backend="tiles")
    grid = [side // encoder.patch for side in spec.size]
    with torch.inference_mode():
        wanted = dense(images)
        maps = encoder.on_sites(images, torch.ones(len(images), *grid, dtype=torch.bool))
    return max((a - b).abs().max().item() for a, b in zip(wanted, maps, strict=True))


def _latency(run: RunDir) -> DemoLatency:
    """p50 and p99 in ms of one image at a time on ONNX Runtime, measured for two seconds."""
    from hgkd_edge.bench.options import BenchOptions
    from hgkd_edge.bench.run import run_bench
    from hgkd_edge.export import verification_images

    options = BenchOptions(models=(run.path,), images=verification_images(run), duration_s=2.0)
    measured = run_bench(options).sessions[0].measurements[0]
    return DemoLatency(
        p50_ms=measured.latency_ms.p50,
        p99_ms=measured.latency_ms.p99,
        runner=f"{measured.runner} {measured.runner_version}",
        threads=measured.threads,
    )
