"""From raw times, and what ran, to the records of bench.json: measurements and their session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

import numpy as np

from hgkd_edge.bench.environment import tool_version
from hgkd_edge.bench.models import ModelFile
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import (
    InputInfo,
    Machine,
    Measurement,
    Refusal,
    Session,
    Telemetry,
    Verification,
)
from hgkd_edge.bench.statistics import noise_of, ratio_of, summarize
from hgkd_edge.bench.timing import Trace

__all__ = ["Case", "Execution", "measurement_of", "session_of", "with_ratios"]

# With fewer, no run lies beyond the 99th percentile.
_RUNS_FOR_P99 = 100


@dataclass(frozen=True)
class Case:
    """One model in one runner, computed in a precision, at one batch size and thread count."""

    model: ModelFile
    runner: str
    precision: str
    batch: int
    threads: int | None

    @property
    def name(self) -> str:
        """The case in bench.json; an engine may be built in another precision than its model's."""
        built = f" {self.precision}" if self.precision != self.model.precision else ""
        threads = f" t{self.threads}" if self.threads else ""
        return f"{self.model.label} {self.runner}{built} b{self.batch}{threads}"


@dataclass(frozen=True)
class Execution:
    """What ran a case and what that cost, apart from the times: fields of `Measurement`."""

    runner_version: str
    backend: str
    threads: int | None
    inputs: list[InputInfo]
    first_inference_ms: float | None
    load_ms: float | None
    build_ms: float | None
    host_memory_mb: float | None
    engine_mb: float | None
    telemetry: Telemetry | None = None
    details: Mapping[str, object] = field(default_factory=dict)
    commands: list[list[str]] = field(default_factory=list)


def session_of(
    target: str,
    options: BenchOptions,
    measured: Sequence[Measurement],
    *,
    models: Sequence[ModelFile],
    machine: Machine,
    refusals: Sequence[Refusal] = (),
    warnings: Sequence[str] = (),
) -> Session:
    """A session; of several cases, each with its ratio to the first."""
    return Session(
        target=target,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        tool_version=tool_version(),
        settings=options.settings(),
        environment=machine,
        models=[model.record() for model in models],
        measurements=with_ratios(measured, measured[0]),
        refusals=list(refusals),
        warnings=list(warnings),
    )


def with_ratios(measured: Sequence[Measurement], base: Measurement) -> list[Measurement]:
    """Measurements with their ratios to `base`, if there are several with the same rounds."""
    rounds = len(base.rounds_p50_ms)
    return [
        one.model_copy(
            update={
                "ratio": ratio_of(one.rounds_p50_ms, base.rounds_p50_ms, name=base.case)
                if len(one.rounds_p50_ms) == rounds and len(measured) > 1
                else None
            }
        )
        for one in measured
    ]


def measurement_of(
    case: Case,
    trace: Trace,
    execution: Execution,
    options: BenchOptions,
    *,
    found: Verification | str | None,
    warnings: Sequence[str] = (),
    where: str = "",
    seconds: float | None = None,
) -> Measurement:
    """A record from raw times.

    Args:
        found: How its outputs compared, or why they could not be compared; None for the reference.
        where: ` on the device` if it is not this machine.
        seconds: Time of all runs, for the throughput; None: their sum.
    """
    times = trace.times_ms
    noise = noise_of(trace.rounds)
    seconds = seconds or float(times.sum() / 1000)
    notes = list(warnings)
    if isinstance(found, str):
        notes.insert(0, f"outputs not verified{where}: {found}")
    elif found is not None and not found.passed:
        notes.insert(0, f"WRONG OUTPUTS{where} (--unverified): do not deploy this file")
    if noise.noisy:
        notes.append(
            f"noisy: middle half of the times spans {noise.spread:.0%} of the median, rounds "
            f"drift by {noise.drift:.0%}; trust ratios within this run, not the absolute time"
        )
    if times.size < _RUNS_FOR_P99:
        notes.append(
            f"p99 of {times.size} runs is hardly more than their maximum; --duration or --count "
            f"for {_RUNS_FOR_P99} or more"
        )
    if not trace.warmup.stable:
        notes.append(f"times had not settled after {trace.warmup.seconds:.1f} s of warm-up")
    return Measurement(
        case=case.name,
        model=case.model.label,
        runner=case.runner,
        precision=case.precision,
        batch=case.batch,
        copies=options.copies,
        latency_ms=summarize(times),
        throughput_ips=case.batch * times.size / seconds,
        warmup=trace.warmup,
        measured_s=seconds,
        rounds_p50_ms=[float(np.median(part)) for part in trace.rounds],
        noise=noise,
        warnings=notes,
        verification=found if isinstance(found, Verification) else None,
        **vars(execution),
    )
