"""Commands in processes forked from one that has loaded torch.

Loading torch and timm takes a Python process several seconds of CPU time, and many tests start
commands only to kill them. What is tested while a process starts belongs into a `subprocess`.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from hgkd_edge.console import console
from hgkd_edge.processes import is_main

ROOT = Path(__file__).parents[1]
COMMAND = "from hgkd_edge.cli import main; main()"
# Without a GPU: a machine with one has none for a second process.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(["tests.preloaded"])


class Ended(NamedTuple):
    """How a process ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


class Started:
    """`python -c CODE ARGUMENTS` with this process's number of threads.

    Args:
        arguments: For `sys.argv`.
        code: Python source; by default the command line.
        environment: Variables added to this process's. Those that a library reads when it is
            loaded have no effect.
        folder: Current folder; by default this process's.
    """

    def __init__(
        self,
        *arguments: str | Path,
        code: str = COMMAND,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self._printed = Path(tempfile.mkdtemp())
        self._process = _FORKING.Process(
            target=_run,
            args=(
                code,
                [str(argument) for argument in arguments],
                {**os.environ, **ENVIRONMENT, **(environment or {})},
                torch.get_num_threads(),
                folder or Path.cwd(),
                self._printed,
            ),
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
            forkserver.ensure_running()
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._text("stdout")

    def wait_for(self, file: Path, lines: int = 1) -> None:
        """Wait until the file exists and has so many lines."""
        deadline = time.monotonic() + 120
        while not (file.is_file() and file.read_bytes().count(b"\n") >= lines):
            if not self.running or time.monotonic() > deadline:
                self._process.kill()
                raise AssertionError(f"{file} never had {lines} lines: {self.end()}")
            time.sleep(0.02)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self, timeout: float = 240) -> Ended:
        """Wait for the end."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise AssertionError(f"still running after {timeout:g} s: {self._text('stderr')}")
        return Ended(self._process.exitcode, self._text("stdout"), self._text("stderr"))

    def _text(self, name: str) -> str:
        file = self._printed / name
        return file.read_text(encoding="utf-8") if file.is_file() else ""


def started_twice(*arguments: str, code: str = COMMAND) -> list[Ended]:
    """How two processes of one training end."""
    return [process.end() for process in start_twice(*arguments, code=code)]


def start_twice(*arguments: str, code: str = COMMAND) -> list[Started]:
    """Two processes of one training, with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    both["MASTER_PORT"] = str(port)
    ranks = [{**both, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    return [Started(*arguments, code=code, environment=rank) for rank in ranks]


def _run(
    code: str,
    arguments: list[str],
    environment: Mapping[str, str],
    threads: int,
    folder: Path,
    printed: Path,
) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        with (printed / name).open("wb") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    console.quiet = not is_main()  # as when it is loaded with these variables
    torch.set_num_threads(threads)
    os.chdir(folder)
    sys.argv = ["hgkd-edge", *arguments]
    exec(compile(code, "<started>", "exec"), {"__name__": "__main__"})
