"""Reproducible latency measurements: on this machine, on a Jetson, or over SSH.

    models.py        which files are measured (ONNX, or what export made of it), and what they are
    inputs.py        what is fed to them (real images, or a fixed-seed tensor)
    runners.py       the runtimes of `exporters` that measure here
    method.py        warm-up until stable, then interleaved rounds
    verification.py  compares outputs with the ONNX file's before timing
    session.py       raw times -> what bench.json holds
    stats.py         percentiles, bootstrap interval, noise
    local.py         all of that on this machine; run.py chooses between local, edge and fleet
    edge/            Jetson facts, trtexec, tegrastats, the script that is sent over SSH
    devices.py       the table of devices, with sources (devices.yaml)
    estimate.py      roofline, for unavailable devices; never shown as a measurement
    records.py       what bench.json holds
    tables.py        what the terminal shows

Nothing here imports torch unless a torch runner is asked for, and importing this package costs
nothing: the names below are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "BenchFile": "records",
    "BenchOptions": "options",
    "Session": "records",
    "compare_files": "compare",
    "estimate_models": "estimate",
    "list_runners": "runners",
    "load_devices": "devices",
    "run_bench": "run",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
