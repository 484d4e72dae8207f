"""Warm-up and interleaving, on functions whose cost is known."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from hgkd_edge.bench import timing
from hgkd_edge.bench.timing import Plan, measure, visiting_order, warm_up

QUICK = Plan(duration_s=0.06, rounds=3, min_runs=6, warmup_min_s=0.0, warmup_max_s=0.6)


class Counted:
    """A case that notes in which order it was called."""

    def __init__(self, log: list[str], name: str, cost_s: float = 0.001) -> None:
        self.log, self.name, self.cost_s = log, name, cost_s

    def __call__(self) -> None:
        self.log.append(self.name)
        time.sleep(self.cost_s)


class Clock:
    """Time that passes only in a case and in sleep, so that figures are exact on a busy machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns, self.rests = 0, []
        monkeypatch.setattr(timing, "perf_counter_ns", lambda: self.now_ns)
        monkeypatch.setattr(timing, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.now_ns += round(seconds * 1e9)

    def case(self, costs_ms: Iterable[float]) -> Iterator[float]:
        """A case that takes these times, one after the other."""
        return map(self._pass, costs_ms).__next__

    def _pass(self, cost_ms: float) -> None:
        self.now_ns += round(cost_ms * 1e6)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_times_are_those_of_the_case() -> None:
    own = []  # by its own clock: on a busy machine a sleep takes longer

    def case() -> None:
        begin = time.perf_counter()
        time.sleep(0.01)
        own.append(1000 * (time.perf_counter() - begin))

    [trace] = measure([case], QUICK)

    assert trace.times_ms.min() >= 10
    assert np.median([np.abs(np.array(own) - each).min() for each in trace.times_ms]) < 1


def test_cases_take_turns_and_swap_places_each_round() -> None:
    log: list[str] = []
    plan = Plan(count=4, rounds=4, warmup_min_s=0, warmup_max_s=0.1)

    traces = measure([Counted(log, "a"), Counted(log, "b")], plan)

    # Each slice is two runs to settle and one measured: 3 runs, 8 slices.
    order = "".join(log[-24::3])
    assert {order[i : i + 4] for i in (0, 4)} <= {"abba", "baab"}
    assert [len(trace.rounds) for trace in traces] == [4, 4]


def test_every_case_gets_other_neighbors_and_the_same_call_the_same_order() -> None:
    order = visiting_order(4, 12)

    assert all(sorted(turn) == [0, 1, 2, 3] for turn in order)
    assert all(order[i] == order[i + 1][::-1] for i in range(0, 12, 2))
    before_two = {turn[turn.index(2) - 1] for turn in order if turn.index(2) > 0}
    assert before_two == {0, 1, 3}
    assert visiting_order(4, 12) == order


def test_the_duration_is_measured_time_per_case() -> None:
    [trace] = measure([Counted([], "one")], Plan(duration_s=0.3, rounds=3, warmup_min_s=0))

    assert 300 <= trace.times_ms.sum() < 360


def test_a_count_is_met_exactly_when_the_rounds_divide_it() -> None:
    [trace] = measure([Counted([], "one")], Plan(count=12, rounds=3, warmup_min_s=0))

    assert len(trace.times_ms) == 12


def test_slow_cases_still_get_their_least_runs() -> None:
    [trace] = measure(
        [Counted([], "slow", 0.02)], Plan(0.01, rounds=2, min_runs=6, warmup_max_s=0.1)
    )

    assert len(trace.times_ms) == 6


def test_warm_up_waits_for_times_to_settle() -> None:
    start = time.perf_counter()

    def cooling() -> None:
        age = time.perf_counter() - start
        time.sleep(max(0.004, 0.03 - 0.05 * age))  # 30 ms at first, 4 ms from 0.52 s on

    seen = warm_up(cooling, Plan(warmup_min_s=0.0, warmup_max_s=5))

    assert seen.stable
    assert seen.seconds > 0.5


def test_warm_up_that_never_settles_ends_and_says_so() -> None:
    growing = iter(range(1, 10_000))

    seen = warm_up(lambda: time.sleep(next(growing) / 1000), Plan(warmup_max_s=0.6))

    assert not seen.stable


def test_garbage_is_collected_once_and_not_while_measuring(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[bool | str] = []
    monkeypatch.setattr(gc, "collect", lambda: states.append("collected"))
    one = clock.case([10.0] * 1000)

    measure([lambda: (states.append(gc.isenabled()), one())], Plan(count=4, rounds=2))

    at = states.index("collected")
    assert set(states[:at]) == {True}  # the warm-up
    assert states[at + 1 :] == [False] * 8  # two slices of two runs to settle and two measured
    assert gc.isenabled()


@pytest.mark.parametrize(
    "wrong",
    [{"duration_s": 0.0}, {"duration_s": -1.0}, {"rounds": 0}, {"count": 0}, {"min_runs": 0}],
)
def test_a_plan_that_measures_nothing_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        Plan(**wrong)


def windows(*medians_ms: float) -> list[float]:
    """Costs of windows of five runs, the last one for ever."""
    return [cost for median in medians_ms for cost in [median] * 5] + [medians_ms[-1]] * 1000


@pytest.mark.parametrize(
    ("costs", "least_s", "runs", "seconds"),
    [
        ([1.0] * 1000, 0.0, 150, 0.15),  # three windows of 50 ms
        (windows(20), 0.0, 15, 0.3),  # three windows of five runs
        ([1.0] * 1000, 0.4, 400, 0.4),
        (windows(10, 10.2, 10.4), 0.0, 15, 0.153),
        (windows(20, 19.6, 19.2), 0.0, 15, 0.294),
        (windows(10, 10.4), 0.0, 20, 0.206),
        (windows(10, 10, 11), 0.0, 25, 0.265),  # calm once, then not: counted from zero
    ],
    ids=["short", "long", "least time", "up 2 %", "down 2 %", "up 4 %", "calm once"],
)
def test_warm_up_ends_after_two_windows_within_three_percent(
    clock: Clock, costs: list[float], least_s: float, runs: int, seconds: float
) -> None:
    seen = warm_up(clock.case(costs), Plan(warmup_min_s=least_s))

    assert seen.stable
    assert seen.runs == runs
    assert seen.seconds == pytest.approx(seconds)


def test_warm_up_ends_at_its_longest(clock: Clock) -> None:
    doubling = windows(*(10 * 2**i for i in range(9)))

    seen = warm_up(clock.case(doubling), Plan(warmup_max_s=0.35))

    assert (seen.stable, seen.runs) == (False, 15)
    assert seen.seconds == pytest.approx(0.35)


@pytest.mark.parametrize(
    ("plan", "runs"),
    [
        (Plan(count=7, rounds=3), [3, 3, 3]),
        (Plan(count=1, rounds=2), [1, 1]),
        (Plan(duration_s=0.3, rounds=3, min_runs=1), [100, 100, 100]),
        (Plan(duration_s=0.01, rounds=3, min_runs=20), [7, 7, 7]),
        (Plan(duration_s=0.01, rounds=1, min_runs=1), [10]),
    ],
)
def test_a_round_has_its_share_of_the_runs_or_of_the_time(
    clock: Clock, plan: Plan, runs: list[int]
) -> None:
    calls: list[int] = []
    one = clock.case([1.0] * 10_000)

    [trace] = measure([lambda: (calls.append(1), one())], plan)

    assert [len(part) for part in trace.rounds] == runs
    assert np.concatenate(trace.rounds) == pytest.approx(1.0)
    assert len(calls) == trace.warmup.runs + sum(runs) + 2 * plan.rounds  # two to settle, uncounted
    assert clock.rests == [timing.REST_S] * plan.rounds


def test_progress_counts_cases_and_then_slices(clock: Clock) -> None:
    seen: list[tuple[str, float]] = []
    cases = [clock.case([1.0] * 1000) for _ in range(2)]

    measure(cases, Plan(count=2, rounds=2), progress=lambda what, part: seen.append((what, part)))

    steps = [("measure", part) for part in (0.25, 0.5, 0.75, 1.0)]
    assert seen == [("warm-up", 0.5), ("warm-up", 1.0), *steps]


@pytest.mark.parametrize("collecting", [True, False])
def test_a_case_that_fails_leaves_garbage_collection_as_it_was(
    clock: Clock, collecting: bool
) -> None:
    if not collecting:
        gc.disable()

    try:
        with pytest.raises(StopIteration):
            measure([clock.case([1.0] * 200)], Plan(count=100, rounds=1))
        assert gc.isenabled() is collecting
    finally:
        gc.enable()


def test_another_seed_gives_another_order() -> None:
    assert visiting_order(6, 4, seed=1) != visiting_order(6, 4, seed=2)
    assert visiting_order(3, 0) == []
