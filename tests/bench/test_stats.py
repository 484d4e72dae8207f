"""From raw times to figures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgkd_edge.bench.statistics import mean_interval, noise_of, ratio_of, summarize

times = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=60).map(np.array)


@given(times)
@settings(max_examples=50, deadline=None)
def test_percentiles_are_ordered_and_the_mean_lies_in_its_interval(samples: np.ndarray) -> None:
    seen = summarize(samples)

    ladder = [seen.min, seen.p50, seen.p90, seen.p95, seen.p99, seen.max]
    assert ladder == sorted(ladder)
    low, high = seen.mean_ci95
    assert low <= seen.mean * (1 + 1e-9)
    assert seen.mean <= high * (1 + 1e-9)


def test_figures_of_a_known_series() -> None:
    seen = summarize(np.arange(1, 102, dtype=float))

    assert (seen.min, seen.p50, seen.p90, seen.p95, seen.p99, seen.max) == (1, 51, 91, 96, 100, 101)
    assert seen.mean == 51
    assert seen.std == pytest.approx((101 * 102 / 12) ** 0.5)
    assert seen.count == 101


def test_two_runs_have_a_spread_and_one_has_none() -> None:
    assert summarize(np.array([1.0, 3.0])).std == pytest.approx(2**0.5)
    seen = summarize(np.array([3.0]))

    assert (seen.count, seen.mean, seen.std, seen.mean_ci95) == (1, 3, 0, (3, 3))


def test_the_interval_is_students_of_twenty_block_means() -> None:
    shares = []
    for seed in range(5):
        samples = np.random.default_rng(seed).gamma(4, 2.5, size=2000)

        low, high = mean_interval(samples, resamples=20_000)

        means = samples.reshape(20, 100).mean(axis=1)
        half = 2.093 * means.std(ddof=1) / 20**0.5
        assert (low + high) / 2 == pytest.approx(samples.mean(), abs=0.05 * half)
        shares.append((high - low) / 2 / half)

    assert np.mean(shares) == pytest.approx(1, abs=0.012)


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)

    hits = 0
    for _ in range(200):
        low, high = mean_interval(rng.gamma(4, 2.5, size=400), resamples=400)
        hits += low <= 10 <= high

    assert 0.90 <= hits / 200 <= 0.99


def test_the_interval_is_not_fooled_by_runs_that_resemble_their_neighbors() -> None:
    rng = np.random.default_rng(4)
    series = rng.normal(size=(200, 1200))
    for step in range(1, series.shape[1]):
        series[:, step] += 0.9 * series[:, step - 1]

    hits = 0
    for one in series[:, 200:]:  # the series starts at zero; the first 200 samples are dropped
        low, high = mean_interval(10 + one, resamples=400)
        hits += low <= 10 <= high

    assert hits / 200 >= 0.86  # .76 with blocks of 10 runs


def test_slow_drift_widens_the_interval_beyond_that_of_shuffled_samples() -> None:
    rng = np.random.default_rng(2)
    drifting = np.repeat(rng.normal(10, 1, size=20), 100) + rng.normal(0, 0.1, size=2000)

    low, high = mean_interval(drifting)
    calm_low, calm_high = mean_interval(rng.permutation(drifting))

    assert high - low > 3 * (calm_high - calm_low)


def test_no_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summarize(np.array([]))


@pytest.mark.parametrize(
    ("rounds", "noisy"),
    [
        ([np.full(20, 5.0), np.full(20, 5.1)], False),
        ([np.full(20, 5.0), np.full(20, 6.0)], True),
        ([np.linspace(4, 8, 40), np.linspace(4, 8, 40)], True),
        ([np.full(20, 5.0)] * 9 + [np.full(20, 5.45)], False),
        ([np.full(20, 5.0)] * 9 + [np.full(20, 5.55)], True),
    ],
    ids=["calm", "rounds drift", "wide spread", "one round, 9 %", "one round, 11 %"],
)
def test_a_noisy_run_is_called_noisy(rounds: list[np.ndarray], noisy: bool) -> None:
    assert noise_of(rounds).noisy is noisy


@pytest.mark.parametrize("unit", [1, 1 / 16])
def test_noise_is_the_middle_half_and_the_drift_of_medians_over_the_median(unit: float) -> None:
    rounds = [np.array([4.0, 5, 6, 7, 8]), np.array([6.0, 7, 8]), np.array([5.0, 9])]

    noise = noise_of([unit * part for part in rounds])

    everything = [4, 5, 5, 6, 6, 7, 7, 8, 8, 9]
    q25, median, q75 = np.percentile(everything, [25, 50, 75])
    assert noise.spread == pytest.approx((q75 - q25) / median)
    assert noise.drift == pytest.approx((7 - 6) / median)


def test_times_of_zero_are_calm() -> None:
    noise = noise_of([np.zeros(5), np.zeros(5)])

    assert (noise.spread, noise.drift, noise.noisy) == (0, 0, False)


def test_ratios_pair_rounds_so_a_machine_that_slows_down_does_not_change_them() -> None:
    base = [1.0, 2.0, 4.0]
    case = [2 * speed for speed in base]

    ratio = ratio_of(case, base, name="base")

    assert (ratio.low, ratio.median, ratio.high) == (2, 2, 2)


def test_a_ratio_has_the_median_and_the_range_of_its_rounds() -> None:
    ratio = ratio_of([2.0, 3.0, 12.0], [1.0, 2.0, 4.0], name="base")

    assert (ratio.to, ratio.low, ratio.median, ratio.high) == ("base", 1.5, 2, 3)
    with pytest.raises(ValueError, match="shorter"):
        ratio_of([1.0, 2.0], [1.0], name="base")
