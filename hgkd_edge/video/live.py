"""Keep reading from a live source across broken connections."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from threading import Event
from typing import TypeVar

from hgkd_edge.errors import StreamLost, reason_of

__all__ = ["LiveClock", "stay_connected"]

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before the next try; doubled with each try
MOST_DRIFT = 5.0  # seconds of clock difference that count as a jump
TICK = 0.001  # seconds: no two frames have one time
T = TypeVar("T")


class LiveClock:
    """Seconds since the first frame by the source's clock: arrival times would jitter.

    If a source states no times, if they jump, and after a broken connection, a frame gets its
    arrival time, and the source's times continue from that value.
    """

    def __init__(self) -> None:
        self._begun, self._shift, self._last = 0.0, float("nan"), -TICK

    def restart(self) -> None:
        """The next times are those of a new connection."""
        self._shift = float("nan")

    def time(self, stated: float, now: float) -> float:
        """The time of the next frame, later than that of the last.

        Args:
            stated: Seconds, by the source; NaN: unknown.
            now: `time.monotonic()` at its arrival.
        """
        if self._last < 0:
            self._begun = now
        here = now - self._begun
        if not abs(stated + self._shift - here) < MOST_DRIFT:  # also of NaN
            self._shift = here - stated
        at = here if math.isnan(stated) else stated + self._shift
        self._last = max(at, self._last + TICK)
        return self._last


def stay_connected(
    connect: Callable[[], Iterator[T]],
    *,
    name: str,
    patience: float,
    stop: Event,
    broken: Callable[[str, float], None],
) -> Iterator[T]:
    """Items of one connection after the other.

    Args:
        connect: Connects when its first item is asked for.
        name: The source, for people.
        patience: Seconds without any item before giving up.
        stop: Event that ends the iteration.
        broken: Called with the reason, and the seconds until the next try.

    Raises:
        StreamLost: Nothing came for `patience` seconds.
    """
    last, pause = time.monotonic(), FIRST_PAUSE
    while not stop.is_set():
        try:
            for item in connect():
                last, pause = time.monotonic(), FIRST_PAUSE
                yield item
                if stop.is_set():
                    return
            reason = "it ended"
        except StreamLost:  # connecting again would not help
            raise
        except Exception as error:  # networks and decoders raise many types
            reason = reason_of(error)
        left = last + patience - time.monotonic()
        if left <= 0:
            raise StreamLost(
                f"{name}: no connection for {patience:g} s: {reason}",
                hint="check camera and network; --reconnect SECONDS waits longer",
            )
        pause = min(pause, left)
        broken(reason, pause)
        stop.wait(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
