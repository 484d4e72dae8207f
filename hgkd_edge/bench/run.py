"""One call of bench: choose where to measure, measure, write bench.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hgkd_edge.bench.local import measure_here
from hgkd_edge.bench.models import resolve_models, run_folder_of
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import Session, save_session
from hgkd_edge.errors import DeviceError

__all__ = ["BenchResult", "run_bench"]

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class BenchResult:
    """The sessions measured (one per target) and the file that holds them."""

    sessions: list[Session]
    file: Path


def run_bench(
    options: BenchOptions, *, progress: Progress = lambda _what, _part: None
) -> BenchResult:
    """Measure, and put the result into bench.json.

    Args:
        options: What to measure and how.
        progress: Told what is being done and the fraction of it that is done.

    Raises:
        RunError: No model to measure, or a bench.json that cannot be read.
        DeviceError: The device cannot be reached or used.
    """
    if options.device == "jetson" and options.host is None and options.hosts is None:
        _refuse_jetson()
    models = resolve_models(options.models, precisions=options.precisions)
    file = options.out or _bench_file(options)
    session = measure_here(models, options, progress=progress)
    save_session(file, session)
    return BenchResult([session], file)


def _bench_file(options: BenchOptions) -> Path:
    """In the run folder when the first model belongs to one, else beside the model."""
    source = options.models[0] if options.models else None
    run = run_folder_of(source)
    if run is not None:
        return run / "bench.json"
    assert source is not None
    return (source if source.is_dir() else source.parent) / "bench.json"


def _refuse_jetson() -> None:
    raise DeviceError(
        "this machine is not a Jetson, and no --host was given",
        hint="over SSH: hgkd-edge bench --device jetson --host user@jetson; "
        "without one: --estimate (a roofline estimate, not a measurement)",
    )
