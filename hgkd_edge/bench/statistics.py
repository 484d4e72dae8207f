"""Statistics of raw times: percentiles, interval of the mean, noise, ratios of two cases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hgkd_edge.bench.records import Latency, Noise, Ratio

__all__ = ["mean_interval", "noise_of", "ratio_of", "summarize"]

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


def ratio_of(case: Sequence[float], base: Sequence[float], *, name: str) -> Ratio:
    """Time of `case` over that of `base`, from the medians of each round, paired round by round.

    Machines drift. Two cases of the same round run under the same conditions, so their ratio is
    valid where the ratio of two separate runs may not be.
    """
    pairs = [one / two for one, two in zip(case, base, strict=True)]
    return Ratio(to=name, median=float(np.median(pairs)), low=min(pairs), high=max(pairs))
