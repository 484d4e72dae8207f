"""Measurements of exported files, in a run or without one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hgkd_edge.api.result import Result
from hgkd_edge.bench.options import BenchOptions

if TYPE_CHECKING:
    from rich.console import RenderableType
    from torch import nn

    from hgkd_edge.bench.run import BenchResult

__all__ = ["measure"]


def measure(options: BenchOptions) -> Result:
    """Measure, and put the result into bench.json.

    Args:
        options: What to measure and how.

    Returns:
        `file` (bench.json), `sessions`, and `refusals` of a fleet's hosts.

    Raises:
        RunError: No model to measure, or a bench.json that cannot be read.
        DeviceError: The device cannot be reached or used.
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


def _view(result: BenchResult, *, fleet: bool) -> RenderableType:
    from hgkd_edge.bench.tables import fleet_view, session_view

    if fleet:
        return fleet_view(result.sessions, result.refusals)
    return session_view(result.sessions[0])


def _load_torch(run: Path) -> nn.Module:
    """A run's dense backbone, on the GPU where there is one; `bench/` knows nothing of models."""
    import torch

    from hgkd_edge.models.backbone import load_embedding_net
    from hgkd_edge.rundir import RunDir

    module = load_embedding_net(RunDir.resolve(run).backbone_file)
    return module.to("cuda" if torch.cuda.is_available() else "cpu")
