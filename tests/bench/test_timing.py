"""Warm-up and interleaving, on functions whose cost is known."""

from __future__ import annotations

import gc
import time

import numpy as np
import pytest

from hgkd_edge.bench.timing import Plan, measure, visiting_order, warm_up

QUICK = Plan(duration_s=0.06, rounds=3, min_runs=6, warmup_min_s=0.0, warmup_max_s=0.6)


class Counted:
    """A case that notes in which order it was called."""

    def __init__(self, log: list[str], name: str, cost_s: float = 0.001) -> None:
        self.log, self.name, self.cost_s = log, name, cost_s

    def __call__(self) -> None:
        self.log.append(self.name)
        time.sleep(self.cost_s)


def test_times_are_those_of_the_case() -> None:
    [trace] = measure([Counted([], "sleep", 0.01)], QUICK)

    assert 10 <= np.median(trace.times_ms) < 15


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


def test_garbage_collection_is_off_while_measuring_and_back_on_afterwards() -> None:
    states: list[bool] = []

    measure([lambda: states.append(gc.isenabled()) or time.sleep(0.001)], QUICK)

    assert states[-1] is False
    assert gc.isenabled()


@pytest.mark.parametrize("wrong", [{"duration_s": 0.0}, {"rounds": 0}, {"count": 0}])
def test_a_plan_that_measures_nothing_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        Plan(**wrong)
