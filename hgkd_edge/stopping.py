"""Ctrl-C and SIGTERM: the first ends a training after its step, the second at once."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from hgkd_edge.console import console

__all__ = ["StopFlag", "sigterm_cleans_up", "stop_on_signal"]

ONE_PRESS = 1.0  # seconds: torchrun forwards a Ctrl-C that its processes already received


@dataclass
class StopFlag:
    """Whether, and when, this process was asked to stop."""

    asked: bool = False
    since: float = 0.0


@contextlib.contextmanager
def stop_on_signal(after: str = "step") -> Iterator[StopFlag]:
    """Turn the first Ctrl-C or SIGTERM into a flag; a second one ends the process at once.

    In a thread the flag is never set: only the main one gets signals.

    Args:
        after: What is finished first, for the message.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

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


@contextlib.contextmanager
def sigterm_cleans_up() -> Iterator[None]:
    """Turn SIGTERM, as schedulers and torchrun send it, into `SystemExit(143)`.

    So it cleans up as Ctrl-C does. In a thread nothing changes: only the main one gets signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: Any) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
