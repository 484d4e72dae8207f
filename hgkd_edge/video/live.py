"""Staying connected to a source that may break."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from threading import Event
from typing import TypeVar

from hgkd_edge.errors import UserError, reason_of

__all__ = ["StreamLost", "stay_connected"]

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before the next try; doubled from try to try
T = TypeVar("T")


class StreamLost(UserError):
    """A live source that broke and did not come back in time."""

    exit_code = 1


def stay_connected(
    connect: Callable[[], Iterator[T]],
    *,
    name: str,
    patience: float,
    stop: Event,
    broken: Callable[[str, float], None],
    first_pause: float = FIRST_PAUSE,
) -> Iterator[T]:
    """Items of one connection after the other.

    Args:
        connect: Connects when its first item is asked for.
        name: The source, for people.
        patience: Seconds without any item after which to give up.
        stop: Set from outside to end.
        broken: Called with the reason, and the seconds until the next try.
        first_pause: Seconds before the first try after an item.

    Raises:
        StreamLost: Nothing came for `patience` seconds.
    """
    last, pause = time.monotonic(), first_pause
    while not stop.is_set():
        try:
            for item in connect():
                last, pause = time.monotonic(), first_pause
                yield item
                if stop.is_set():
                    return
            reason = "it ended"
        except Exception as error:  # whatever a network or a decoder raises
            reason = reason_of(error)
        left = last + patience - time.monotonic()
        if left <= 0:
            raise StreamLost(
                f"{name}: lost, and not back within {patience:g} s: {reason}",
                hint="check camera and network; --reconnect SECONDS waits longer",
            )
        pause = min(pause, left)
        broken(reason, pause)
        stop.wait(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
