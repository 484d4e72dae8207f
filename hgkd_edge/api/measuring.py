"""Measurements and estimates of models, in a run or without one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hgkd_edge.api.result import Result
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.files import require_writable_folder, write_json
from hgkd_edge.rundir import RunDir

if TYPE_CHECKING:
    from rich.console import RenderableType
    from torch import nn

    from hgkd_edge.bench.run import BenchResult

__all__ = ["compare_measurements", "estimate", "measure", "measure_pipeline"]

AnyPath = str | os.PathLike[str]


def measure(options: BenchOptions) -> Result:
    """Measure, and put the result into bench.json; `Run.bench` measures one run.

    Args:
        options: What to measure and how.

    Returns:
        `file` (bench.json), `sessions`, and `refusals` of a fleet's hosts.

    Raises:
        RunError: No model to measure, or a bench.json that cannot be read.
        DeviceError: The device cannot be reached or used.
        WrongOutputs: A file's outputs differ from its ONNX file's.
        WorkFailed: The work on a device failed, or the connection broke.
    """
    from hgkd_edge.bench.run import run_bench
    from hgkd_edge.console import live_progress

    options = replace(options, load_torch=_load_torch)
    with live_progress() as tell:
        result = run_bench(options, progress=tell)
    record = {
        "file": str(result.file),
        "sessions": [one.model_dump(mode="json") for one in result.sessions],
        "refusals": [one.model_dump() for one in result.refusals],
    }
    return Result(record, lambda: [_view(result, fleet=options.hosts is not None)])


def estimate(options: BenchOptions, devices: Sequence[str] = ()) -> Result:
    """Estimate latency on devices that are not available. Arithmetic, not a measurement.

    Args:
        options: `models`, `precisions`, `batches`, and `out` for the file.
        devices: Names of `hgkd-edge devices`, or families such as `orin-nano`; empty takes all.

    Returns:
        `file` (bench-estimate.json) and `estimates`.

    Raises:
        DeviceError: A device that is not in the table, or a precision without figures.
        RunError: No model, or one whose shapes cannot be inferred.
    """
    from hgkd_edge.bench.estimate import estimate_to_file, estimate_view

    file, content = estimate_to_file(options, devices)
    record = {"file": str(file), **content.model_dump(mode="json", by_alias=True)}
    return Result(record, lambda: [estimate_view(content.estimates)])


def compare_measurements(a: AnyPath, b: AnyPath) -> Result:
    """Compare the cases of two bench.json files.

    Args:
        a: The file to compare with.
        b: The file whose times are divided by those of `a`.

    Returns:
        `rows`, one per case of both files, with the `ratio` b/a and whether it is `beyond_noise`.

    Raises:
        RunError: A file cannot be read, or they have no case in common.
    """
    from hgkd_edge.bench.compare import compare_files
    from hgkd_edge.bench.tables import comparison_view

    found = compare_files(Path(a), Path(b))
    return Result(found.model_dump(mode="json"), lambda: [comparison_view(found)])


def measure_pipeline(
    images: AnyPath | Iterable[AnyPath],
    model: AnyPath | None = None,
    *,
    duration_s: float = 5.0,
    count: int | None = None,
    out: AnyPath | None = None,
    trust_engine: bool = False,
) -> Result:
    """Measure all stages from image file to prediction, one image at a time.

    Args:
        images: Image files, or folders of them; repeated until the time is up.
        model: What `load_model` takes; None is the latest run.
        duration_s: Seconds to measure.
        count: Images to measure, instead of `duration_s`.
        out: Also write the result to this JSON file.
        trust_engine: Load an engine although it was not built on this machine.

    Returns:
        `stages` in milliseconds, `frames_per_s`, and `infer_frames_per_s` of the network alone.

    Raises:
        RunError: The model cannot be opened.
        DataError: There are no images, or one cannot be processed.
    """
    from hgkd_edge.pipeline import measure_pipeline as measured
    from hgkd_edge.tables import pipeline_lines

    if out is not None:
        require_writable_folder(Path(out))
    chosen = [images] if isinstance(images, (str, os.PathLike)) else images
    found = measured(
        RunDir.resolve(None).path if model is None else Path(model),
        [Path(image) for image in chosen],
        duration_s=duration_s,
        count=count,
        trust_engine=trust_engine,
    )
    if out is not None:
        write_json(Path(out), found.to_dict())
    return Result(found.to_dict(), lambda: pipeline_lines(found))


def _view(result: BenchResult, *, fleet: bool) -> RenderableType:
    from hgkd_edge.bench.tables import fleet_view, session_view

    if fleet:
        return fleet_view(result.sessions, result.refusals)
    return session_view(result.sessions[0])


def _load_torch(run: Path) -> nn.Module:
    """A run's dense backbone, on the GPU where there is one; `bench/` knows nothing of models."""
    import torch

    from hgkd_edge.models.backbone import load_embedding_net

    module = load_embedding_net(RunDir.resolve(run).backbone_file)
    return module.to("cuda" if torch.cuda.is_available() else "cpu")
