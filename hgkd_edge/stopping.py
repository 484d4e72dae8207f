"""Graceful shutdown on signals."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hgkd_edge.console import console

__all__ = ["StopFlag", "stop_on_signal"]

ONE_PRESS = 1.0  # seconds: torchrun forwards a Ctrl-C that its processes already received


@dataclass
class StopFlag:
    """Whether, and when, this process was asked to stop."""

    asked: bool = False
    since: float = 0.0


@contextlib.contextmanager
def stop_on_signal(after: str = "step") -> Iterator[StopFlag]:
    """Turn the first Ctrl-C or SIGTERM into a flag; a second one ends the process at once.

    Args:
        after: What is finished first, for the message.
    """
    flag = StopFlag()

    def ask(number: int, frame: Any) -> None:
        if not flag.asked:
            flag.asked, flag.since = True, time.monotonic()
            console.print(f"stopping after this {after} (again to stop at once) ...")
        elif time.monotonic() - flag.since > ONE_PRESS:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
