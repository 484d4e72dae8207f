"""Commands in forked processes: torch is imported once, so that a trial takes a second or two."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

__all__ = ["OPENED_A_SOCKET", "Child", "Ended", "preload", "run", "start"]

PATIENCE = 300.0  # seconds until a command counts as hanging
OPENED_A_SOCKET = 99  # exit code
SOCKET = "opened a socket: "  # printed then
SOCKET_EVENTS = tuple(
    f"socket.{name}"
    for name in (
        *("connect", "bind", "sendto", "sendmsg"),
        *("getaddrinfo", "gethostbyname", "gethostbyaddr"),
    )
)
# Imported before the first fork, so that a signal meets the work and not the imports; without
# ONNX Runtime and `bench`, which start a thread.
LIBRARIES = (
    *("torch", "timm", "accelerate", "onnx", "safetensors.torch"),
    *("torch._dynamo", "torch.onnx", "torch.export._trace", "torchvision.transforms.v2"),
    *("onnxscript.function_libs.torch_lib.ops", "matplotlib.figure"),
)
OURS = (
    *("hgkd_edge.cli", "hgkd_edge.distillation.distill", "hgkd_edge.distillation.pretrain"),
    *("hgkd_edge.finetune", "hgkd_edge.evaluate", "hgkd_edge.export", "hgkd_edge.predict"),
    "hgkd_edge.report",
)


class Ended(NamedTuple):
    """How a command ended: its exit code, or minus the signal's number; and what it printed."""

    code: int
    printed: str


@dataclass
class Child:
    """A command that runs in a separate process."""

    pid: int
    log: Path
    began: float

    def signal_after(self, seconds: float, number: int) -> bool:
        """Send a signal, unless the command ends before; returns whether it was sent."""
        while time.monotonic() - self.began < seconds:
            if self.ended_already():
                return False
            time.sleep(0.002)
        os.kill(self.pid, number)
        return True

    def ended_already(self) -> bool:
        done = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return done is not None

    def wait(self) -> Ended:
        """Raises: TimeoutError: It hangs."""
        while not self.ended_already():
            if time.monotonic() - self.began > PATIENCE:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(
                    f"no end after {PATIENCE:.0f} s:\n{self.log.read_text()[-2000:]}"
                )
            time.sleep(0.005)
        _, status = os.waitpid(self.pid, 0)
        printed = self.log.read_text(errors="replace")
        # What opened it may be a process that the command had forked.
        code = OPENED_A_SOCKET if SOCKET in printed else os.waitstatus_to_exitcode(status)
        return Ended(code, printed)


def preload() -> None:
    """Import what the commands need.

    Raises:
        RuntimeError: An import started a thread, which a fork would lose.
    """
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):  # of an extra that is not installed
            importlib.import_module(name)
    for name in OURS:
        importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("an import started threads: commands cannot be forked")
    gc.collect()
    gc.freeze()  # otherwise each collection in a command copies these pages


def start(
    arguments: Sequence[str], folder: Path, log: Path, before: Callable[[], object] | None = None
) -> Child:
    """Start `hgkd-edge ARGUMENTS` in a folder, with its output in `log`.

    It ends with `OPENED_A_SOCKET` if Python, in it or in a process that it forks, opens a
    connection or looks up a name.

    Args:
        before: Called in the new process first, to break something in it.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Child(pid, log, time.monotonic())
    code = 70
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.chdir(folder)
        os.environ |= {"HGKD_EDGE_CACHE": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
        os.environ.pop("CI", None)  # some libraries are only silent there
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["hgkd-edge", *arguments]
        sys.addaudithook(_watch_sockets)
        if before is not None:
            before()
        from hgkd_edge.cli import main

        main()
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else int(done.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def run(
    arguments: Sequence[str], folder: Path, log: Path, before: Callable[[], object] | None = None
) -> Ended:
    """Start a command and wait for its end."""
    return start(arguments, folder, log, before).wait()


def _watch_sockets(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook: the end of a process that connects, listens or looks up a name."""
    if event in SOCKET_EVENTS:
        os.write(2, f"{SOCKET}{event} {arguments[1:]}\n".encode())
        os._exit(OPENED_A_SOCKET)
