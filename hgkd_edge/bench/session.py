"""Turn raw times into records of bench.json: percentiles, interval of the mean, noise, ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

import numpy as np

from hgkd_edge.bench.environment import tool_version
from hgkd_edge.bench.method import Trace
from hgkd_edge.bench.models import ModelFile
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import (
    InputInfo,
    Latency,
    Machine,
    Measurement,
    Noise,
    Ratio,
    Refusal,
    Session,
    Telemetry,
    Verification,
)

__all__ = [
    "Case",
    "Execution",
    "mean_interval",
    "measurement_of",
    "noise_of",
    "ratio_of",
    "session_of",
    "summarize",
    "with_ratios",
]

# With fewer, no run lies beyond the 99th percentile.
_RUNS_FOR_P99 = 100
# A quiet machine stays well under both; above either, two runs of the same command may differ by
# more than the effect of interest.
_WIDE_SPREAD = 0.15
_WIDE_DRIFT = 0.10
# Few, long blocks: neighboring runs resemble each other over seconds, and a block must outlast
# that. With 20 the interval holds the mean in 9 of 10 series with autocorrelation .9 at 1000 runs;
# with 100 it did in 3 of 4. Resampling only 20 means gives a slightly narrow interval; Student's t
# corrects that (Schmeiser 1982 on the number of batches).
_BLOCKS = 20
_WIDEN = 2.093 / 1.960 * (20 / 19) ** 0.5


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


def ratio_of(case: Sequence[float], base: Sequence[float], *, name: str) -> Ratio:
    """Time of `case` over that of `base`, from the medians of each round, paired round by round.

    Machines drift. Two cases of the same round run under the same conditions, so their ratio is
    valid where the ratio of two separate runs may not be.
    """
    pairs = [one / two for one, two in zip(case, base, strict=True)]
    return Ratio(to=name, median=float(np.median(pairs)), low=min(pairs), high=max(pairs))


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


def summarize(times_ms: np.ndarray) -> Latency:
    """Describe single-inference times: f64[n] in ms, in the order in which they were measured.

    Percentiles interpolate linearly between samples.

    Raises:
        ValueError: No samples.
    """
    if times_ms.size == 0:
        raise ValueError("no samples to summarize")
    ladder = np.percentile(times_ms, [0, 50, 90, 95, 99, 100]).tolist()
    return Latency(
        count=times_ms.size,
        mean=float(times_ms.mean()),
        mean_ci95=mean_interval(times_ms),
        std=float(times_ms.std(ddof=1)) if times_ms.size > 1 else 0.0,
        **dict(zip(("min", "p50", "p90", "p95", "p99", "max"), ladder, strict=True)),
    )


def mean_interval(
    times_ms: np.ndarray, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of the mean, over blocks of neighboring samples.

    Neighboring runs resemble each other (clock and cache drift), so resampling single runs would
    give too narrow an interval; whole blocks are resampled instead (Carlstein 1986, non-overlapping
    blocks). The interval covers this run only; conditions may differ in another run.

    The same samples, f64[n] in measured order, give the same (low, high) each time; fewer than two
    give (mean, mean).
    """
    mean = float(times_ms.mean())
    if times_ms.size < 2:
        return mean, mean
    blocks = min(_BLOCKS, times_ms.size)
    parts = np.array_split(times_ms, blocks)
    sums = np.array([part.sum() for part in parts])
    sizes = np.array([part.size for part in parts])
    picks = np.random.default_rng(seed).integers(0, blocks, size=(resamples, blocks))
    means = sums[picks].sum(axis=1) / sizes[picks].sum(axis=1)
    low, high = mean + _WIDEN * (np.percentile(means, [2.5, 97.5]) - mean)
    return float(low), float(high)


def noise_of(rounds: Sequence[np.ndarray]) -> Noise:
    """Spread of the times within the run, and drift between its interleaved rounds: f64[n_i]."""
    everything = np.concatenate(list(rounds))
    q25, median, q75 = np.percentile(everything, [25, 50, 75])
    medians = np.array([np.median(part) for part in rounds])
    spread = float((q75 - q25) / median) if median > 0 else 0.0
    drift = float((medians.max() - medians.min()) / median) if median > 0 else 0.0
    return Noise(spread=spread, drift=drift, noisy=spread > _WIDE_SPREAD or drift > _WIDE_DRIFT)
