"""What all trainings of the API share: their settings, and the folder that they work in."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from hgkd_edge.console import console
from hgkd_edge.errors import MissingPackageError
from hgkd_edge.processes import is_main
from hgkd_edge.rundir import RunDir

__all__ = ["Overrides", "announce", "as_assignments", "at_work", "require_training_packages"]

Overrides = Mapping[str, object] | Sequence[str]


def as_assignments(overrides: Overrides) -> list[str]:
    """`{"train.epochs": 10}` or `["train.epochs=10"]` as the latter, as `--set` takes them."""
    if not isinstance(overrides, Mapping):
        return list(overrides)
    return [f"{key}={json.dumps(value, default=str)}" for key, value in overrides.items()]


def require_training_packages(what: str) -> None:
    """Refuse to train in the base install, which has no PyTorch.

    Raises:
        MissingPackageError: Names the extra.
    """
    for package in ("torch", "timm"):
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(what, package=package, extra="train")


def announce(folder: RunDir, because: str = "") -> None:
    """Name the run folder, and why it is this one."""
    line = f"run folder: {folder.path}" + (f" ({because})" if because else "")
    console.print(line, soft_wrap=True)


@contextlib.contextmanager
def at_work(folder: RunDir) -> Iterator[None]:
    """Train in a folder, as `RunDir.at_work`; the main process sees to it.

    SIGTERM, as schedulers and torchrun send it, cleans up as Ctrl-C does.
    """
    with _sigterm_cleans_up(), folder.at_work() if is_main() else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _sigterm_cleans_up() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return

    def terminate(number: int, frame: Any) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
