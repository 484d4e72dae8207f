"""The timing method: first run, warm-up until stable, then rounds that visit the cases in turn.

Clocks, other load and temperature drift over seconds. Cases measured one after the other run under
different conditions; interleaved cases run under the same ones.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns, sleep
from typing import Callable  # noqa: UP035

import numpy as np

from hgkd_edge.bench.records import Warmup

__all__ = [
    "REST_S",
    "Plan",
    "Trace",
    "measure",
    "timed",
    "visiting_order",
    "warm_up",
]

RunOnce = Callable[[], object]  # typing's: this file is also sent to devices with Python 3.7

# The previous case's thread pool spins for about 30 ms on the cores of this case.
REST_S = 0.05
# Uncounted runs at the start of a slice: they wake the thread pool and refill the caches after the
# previous case.
_SETTLE_RUNS = 2


@dataclass(frozen=True)
class Plan:
    """How long and how to measure.

    Args:
        duration_s: Measured time per case, all rounds together.
        count: Measured runs per case instead of a duration.
        rounds: Visits to each case; 1 measures the cases one after the other.
        min_runs: Runs per case below which the duration is extended.
        warmup_min_s: Minimum warm-up per case.
        warmup_max_s: Warm-up per case after which measuring starts, settled or not.
    """

    duration_s: float = 5.0
    count: int | None = None
    rounds: int = 5
    min_runs: int = 20
    warmup_min_s: float = 0.2
    warmup_max_s: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.duration_s < float("inf"):
            raise ValueError(f"duration must be positive and finite, not {self.duration_s} s")
        if self.rounds < 1 or self.min_runs < 1 or (self.count is not None and self.count < 1):
            raise ValueError("rounds, min_runs and count must be at least 1")


@dataclass
class Trace:
    """Raw times of one case: `rounds[r]` is f64[n_r] in ms."""

    warmup: Warmup
    rounds: list[np.ndarray] = field(default_factory=list)

    @property
    def times_ms(self) -> np.ndarray:
        """All measured times in order, f64[n]."""
        return np.concatenate(self.rounds)


def measure(
    cases: Sequence[RunOnce],
    plan: Plan,
    *,
    progress: Callable[[str, float], None] = lambda _what, _part: None,
) -> list[Trace]:
    """Time each case; a case is a function that returns when its outputs can be read.

    Args:
        cases: One function per case, each a complete inference. The caller times its very first
            run, if needed, with `timed` right after loading.
        plan: Duration, rounds, warm-up.
        progress: Called with ("warm-up" | "measure", fraction done).

    Returns:
        One trace per case, in the same order; every trace has `plan.rounds` rounds.
    """
    traces = []
    for index, case in enumerate(cases):
        traces.append(Trace(warmup=warm_up(case, plan)))
        progress("warm-up", (index + 1) / len(cases))

    # A collection in the middle of a run would be charged to the model.
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        order = [index for turn in visiting_order(len(cases), plan.rounds) for index in turn]
        for done, index in enumerate(order, start=1):
            traces[index].rounds.append(_slice(cases[index], plan))
            progress("measure", done / len(order))
    finally:
        if collecting:
            gc.enable()
    return traces


def visiting_order(cases: int, rounds: int, seed: int = 0) -> list[list[int]]:
    """The visiting order of each round: shuffled, then the same reversed, then shuffled again.

    Shuffling varies which case runs before another, since each affects the caches of the next. The
    reversed round cancels linear drift (A B B A). The same call gives the same order.
    """
    rng = random.Random(seed)
    order: list[list[int]] = []
    for turn in range(rounds):
        order.append(order[-1][::-1] if turn % 2 else rng.sample(range(cases), cases))
    return order


def warm_up(case: RunOnce, plan: Plan) -> Warmup:
    """Run until the median of a window stays within 3 % of the window before, twice in a row.

    A window holds at least 5 runs and lasts at least 50 ms, so that one slow run cannot look like a
    settled machine.
    """
    start = perf_counter_ns()
    runs, calm, previous = 0, 0, 0.0
    while True:
        window = _window(case, least_runs=5, least_s=0.05)
        runs += len(window)
        median = float(np.median(window))
        calm = calm + 1 if abs(median - previous) <= 0.03 * previous else 0
        previous = median
        seconds = (perf_counter_ns() - start) / 1e9
        if calm >= 2 and seconds >= plan.warmup_min_s:
            return Warmup(runs=runs, seconds=seconds, stable=True)
        if seconds >= plan.warmup_max_s:
            return Warmup(runs=runs, seconds=seconds, stable=False)


def _slice(case: RunOnce, plan: Plan) -> np.ndarray:
    """One visit to one case: f64[n] ms."""
    sleep(REST_S)
    for _ in range(_SETTLE_RUNS):
        case()
    if plan.count is not None:
        return np.array([timed(case) for _ in range(-(-plan.count // plan.rounds))])
    least_runs = -(-plan.min_runs // plan.rounds)
    return np.array(_window(case, least_runs=least_runs, least_s=plan.duration_s / plan.rounds))


def _window(case: RunOnce, *, least_runs: int, least_s: float) -> list[float]:
    """Runs until both bounds are met; ms each."""
    times: list[float] = []
    spent_ms = 0.0
    while len(times) < least_runs or spent_ms < least_s * 1000:
        times.append(timed(case))
        spent_ms += times[-1]
    return times


def timed(case: RunOnce) -> float:
    """One run, in ms."""
    start = perf_counter_ns()
    case()
    return (perf_counter_ns() - start) / 1e6
