"""Run `bench` for cases not yet measured on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from hgkd_edge.bench.local import list_runners
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.run import run_bench
from hgkd_edge.comparison.artifacts import artifacts_of
from hgkd_edge.comparison.compare_runs import sessions_of, timed_here
from hgkd_edge.errors import DeviceError
from hgkd_edge.rundir import RunDir

__all__ = ["measure_missing"]

Progress = Callable[[str, float], None]

# Runtime of a file -> its device in `bench`, and the accepted runners.
_DEVICES = {
    "ort-cpu": ("cpu", {"ort-cpu"}),
    "openvino": ("openvino", {"openvino"}),
    "tensorrt": ("cuda", {"tensorrt", "tensorrt-rtx"}),
}


def measure_missing(run: RunDir, progress: Progress) -> list[str]:
    """Measure each device of this machine on which a file of the run has no times yet.

    A device is measured as a whole, so that its rows belong to one interleaved session. The new
    session replaces the earlier one and uses the same batches, threads and copies.

    Args:
        run: Its exported files.
        progress: As `run_bench` calls it.

    Returns:
        Cases that could not be measured, with reasons.

    Raises:
        RunError: The run has nothing exported.
    """
    failed = []
    for device in _missing_devices(run):
        options = replace(_like_before(run, device), models=(run.path,), device=device)
        try:
            run_bench(options, progress=progress)
        except DeviceError as error:
            failed.append(f"not measured on {device}: {error.message}")
    return failed


def _missing_devices(run: RunDir) -> Iterator[str]:
    able = {name for name, refusal in list_runners() if refusal is None}
    there = {
        (model.sha256, one.runner)
        for session in sessions_of(run)
        if timed_here(session)
        for one in session.measurements
        for model in session.models
        if model.label == one.model
    }
    artifacts = artifacts_of(run).artifacts
    for runtime, (device, runners) in _DEVICES.items():
        files = [artifact for artifact in artifacts if artifact.runtime == runtime]
        done = all(any((one.sha256, name) in there for name in runners) for one in files)
        if files and runners & able and not done:
            yield device


def _like_before(run: RunDir, device: str) -> BenchOptions:
    """The device's earlier settings, else the defaults of `bench`."""
    sessions = [one for one in sessions_of(run) if one.target == device]
    if not sessions:
        return BenchOptions()
    before = sessions[0].settings
    return BenchOptions(
        batches=tuple(before.batches),
        threads=tuple(before.threads),
        copies=before.copies,
        duration_s=before.duration_s,
        rounds=before.rounds,
        count=before.count,
    )
