"""How long each stage of a pipeline takes: decode, preprocess, infer, postprocess and others."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Stages"]

RECENT = 10_000  # times per stage for percentiles: a camera runs for weeks


@dataclass
class _Times:
    """Seconds that one stage took."""

    total: float = 0.0
    count: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))


class Stages:
    """Seconds by stage, in the order in which stages first occur."""

    def __init__(self) -> None:
        self._times: dict[str, _Times] = {}

    @contextlib.contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - begun)

    def add(self, stage: str, seconds: float) -> None:
        """Add one time to a stage."""
        times = self._times.setdefault(stage, _Times())
        times.total += seconds
        times.count += 1
        times.recent.append(seconds)

    def summary(self) -> dict[str, dict[str, float]]:
        """Milliseconds by stage: `mean` of all times, `p50` and `p99` of the last 10,000."""
        return {
            stage: {
                "mean": 1e3 * times.total / times.count,
                "p50": 1e3 * float(np.percentile(times.recent, 50)),
                "p99": 1e3 * float(np.percentile(times.recent, 99)),
            }
            for stage, times in self._times.items()
        }
