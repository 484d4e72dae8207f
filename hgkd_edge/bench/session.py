"""Turn raw times into records of bench.json, for this machine and for devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np

from hgkd_edge.bench.environment import tool_version
from hgkd_edge.bench.method import Trace
from hgkd_edge.bench.models import ModelFile
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import Measurement, Refusal, Session, Verification
from hgkd_edge.bench.stats import noise_of, ratio_of, summarize

__all__ = ["Case", "measurement_of", "session_of", "with_ratios"]

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


def session_of(
    target: str,
    options: BenchOptions,
    measured: Sequence[Measurement],
    *,
    models: Sequence[ModelFile],
    environment: dict[str, Any],
    refusals: Sequence[Refusal] = (),
    warnings: Sequence[str] = (),
) -> Session:
    """A session; of several cases, each with its ratio to the first."""
    return Session(
        target=target,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        tool_version=tool_version(),
        settings=options.settings(),
        environment=environment,
        models=[model.record() for model in models],
        measurements=with_ratios(measured, measured[0]),
        refusals=list(refusals),
        warnings=list(warnings),
    )


def with_ratios(measured: Sequence[Measurement], base: Measurement) -> list[Measurement]:
    """Measurements with their ratios to `base`, if there are several with the same rounds."""
    rounds = base.rounds_p50_ms
    ratios = [
        ratio_of(one.rounds_p50_ms, rounds, name=base.case)
        if len(one.rounds_p50_ms) == len(rounds) and len(measured) > 1
        else None
        for one in measured
    ]
    return [
        one.model_copy(update={"ratio": ratio}) for one, ratio in zip(measured, ratios, strict=True)
    ]


def measurement_of(
    case: Case,
    trace: Trace,
    options: BenchOptions,
    *,
    first_ms: float | None,
    found: Verification | str | None,
    warnings: Sequence[str] = (),
    where: str = "",
    seconds: float | None = None,
    **fields: Any,
) -> Measurement:
    """A record from raw times.

    Args:
        first_ms: The first run after loading, where it is known.
        found: How its outputs compared, or why they could not be compared; None for the reference.
        where: ` on the device` if it is not this machine.
        seconds: Time of all runs, for the throughput; None: their sum.
        fields: The remaining fields of `Measurement`.
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
    about = {
        "case": case.name,
        "model": case.model.label,
        "precision": case.precision,
        "batch": case.batch,
        "threads": case.threads,
        "copies": options.copies,
        "latency_ms": summarize(times),
        "throughput_ips": case.batch * times.size / seconds,
        "first_inference_ms": first_ms,
        "warmup": trace.warmup,
        "measured_s": seconds,
        "rounds_p50_ms": [float(np.median(part)) for part in trace.rounds],
        "noise": noise,
        "warnings": notes,
        "verification": found if isinstance(found, Verification) else None,
    }
    return Measurement(**{"runner": case.runner, **about, **fields})
