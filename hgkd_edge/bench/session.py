"""Turn raw times into records of bench.json, for this machine and for devices."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np

from hgkd_edge.bench.environment import tool_version
from hgkd_edge.bench.method import Trace
from hgkd_edge.bench.models import ModelFile
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import Measurement, Refusal, Session, Verification
from hgkd_edge.bench.stats import noise_of, ratio_of, summarize

__all__ = ["Measured", "measurement_of", "session_of"]

Measured = tuple[Measurement, list[np.ndarray]]  # and the times of its rounds

# With fewer, no run lies beyond the 99th percentile.
_RUNS_FOR_P99 = 100


def session_of(
    target: str,
    options: BenchOptions,
    measured: Sequence[Measured],
    *,
    models: Sequence[ModelFile],
    environment: dict[str, Any],
    refusals: Sequence[Refusal] = (),
    warnings: Sequence[str] = (),
) -> Session:
    """A session; of several cases, each with its ratio to the first."""
    measurements = [one for one, _rounds in measured]
    if len(measured) > 1:
        base, name = measured[0][1], measurements[0].case
        measurements = [
            one.model_copy(update={"ratio": ratio_of(rounds, base, name=name)})
            for one, rounds in measured
        ]
    return Session(
        target=target,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        tool_version=tool_version(),
        settings=options.settings(),
        environment=environment,
        models=[model.record() for model in models],
        measurements=measurements,
        refusals=list(refusals),
        warnings=list(warnings),
    )


def measurement_of(
    trace: Trace,
    *,
    batch: int,
    first_ms: float | None,
    found: Verification | str | None,
    where: str = "",
    **fields: Any,
) -> Measurement:
    """A record from raw times.

    Args:
        trace: Raw times of one case.
        batch: B, for the throughput: B x runs / time spent in runs.
        first_ms: The first run after loading, where it is known.
        found: How its outputs compared, or why they could not be compared; None for the reference.
        where: ` on the device` if it is not this machine.
        fields: The remaining fields of `Measurement`.
    """
    times = trace.times_ms
    noise = noise_of(trace.rounds)
    warnings = list(fields.pop("warnings", []))
    if isinstance(found, str):
        warnings.insert(0, f"outputs not verified{where}: {found}")
    elif found is not None and not found.passed:
        warnings.insert(0, f"WRONG OUTPUTS{where} (--unverified): do not deploy this file")
    if noise.noisy:
        warnings.append(
            f"noisy: middle half of the times spans {noise.spread:.0%} of the median, rounds "
            f"drift by {noise.drift:.0%}; trust ratios within this run, not the absolute time"
        )
    if times.size < _RUNS_FOR_P99:
        warnings.append(
            f"p99 of {times.size} runs is hardly more than their maximum; --duration or --count "
            f"for {_RUNS_FOR_P99} or more"
        )
    if not trace.warmup.stable:
        warnings.append(f"times had not settled after {trace.warmup.seconds:.1f} s of warm-up")
    return Measurement(
        batch=batch,
        latency_ms=summarize(times),
        throughput_ips=batch * times.size / (times.sum() / 1000),
        first_inference_ms=first_ms,
        warmup=trace.warmup,
        measured_s=float(times.sum() / 1000),
        rounds_p50_ms=[float(np.median(part)) for part in trace.rounds],
        noise=noise,
        warnings=warnings,
        verification=found if isinstance(found, Verification) else None,
        **fields,
    )
