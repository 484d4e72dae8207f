"""The conversation with an agent: start it, hand it a job, hear it out, stop it.

The same agent serves a Jetson that is this very machine (started as a child process) and one
behind SSH, so both are measured by the same code.
"""

from __future__ import annotations

import errno
import io
import json
import os
import queue
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hgkd_edge.bench import method
from hgkd_edge.bench.edge.facts import checked_facts
from hgkd_edge.bench.edge.limits import (
    MOST_CASE_S,
    MOST_ERROR_TEXT,
    MOST_SHOWN,
    MOST_WAITING_EVENTS,
)
from hgkd_edge.bench.edge.ssh import PROGRAM, Host, explain, ssh_command
from hgkd_edge.bench.edge.stream import Event, EventStream, StreamFault, mark_of
from hgkd_edge.errors import DeviceError, UserError

__all__ = ["AgentFailed", "Link", "agent_source", "open_link"]

_CHUNK = 1 << 18
_HELLO_S = 150.0
# The agent speaks at least every two seconds while it works; a minute and a half of silence
# outlasts ssh's own keepalive.
_SILENCE_S = 90.0
# How long ssh may take to end by itself: after its output ended, and after our last word.
_END_S = 10.0
_GRACE_S = 10.0
_NOT_OURS = "log in there and see what runs; do not trust its numbers"
_MODULES = ("life", "facts", "telemetry", "trt", "ort", "main")


class AgentFailed(UserError):
    """The work on the device failed, or the line to it broke. Exit code 1: it had begun."""

    exit_code = 1


class Link:
    """A running agent.

    Args:
        command: How to start it: an ssh command, or this Python.
        where: Name of the machine for messages.
        host: The SSH host, or None for this machine.
        case_s: How long a case may take at most, from its build to its last visit.
    """

    def __init__(
        self, command: list[str], *, where: str, host: Host | None, case_s: float = MOST_CASE_S
    ) -> None:
        self.where = where
        self.host = host
        self.case_s = case_s
        # A session of its own: Ctrl-C in the terminal must not end ssh before we said `bye`.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        os.set_blocking(self.process.stdin.fileno(), False)  # see `_write`
        self._token = secrets.token_hex(16)
        self._events: queue.Queue[Event | None] = queue.Queue(MOST_WAITING_EVENTS)
        self._fault = ""
        self._stderr = b""
        self._writing = threading.RLock()
        self._closed = threading.Event()
        threading.Thread(target=self._hear, daemon=True).start()
        self._overhearing = threading.Thread(target=self._overhear, daemon=True)
        self._overhearing.start()

    def hello(self) -> Event:
        """Send the agent, return its facts.

        Raises:
            DeviceError: The host cannot be reached or has no Python.
        """
        source = agent_source(self._token).encode()
        with suppress(OSError):  # a refused connection shows below, with ssh's own reason
            self._write(f"{len(source)}\n".encode() + source)
        event = self._next(_HELLO_S)
        if event is not None and event["event"] != "hello":
            self._fault = "it sent other messages before its facts"
        if self._fault:
            raise self._broken()
        if event is None:
            code = self._ended()
            if self.host is not None:
                raise explain(self.host, code, self._said())
            raise DeviceError(f"the measuring process did not start: {self._said().strip()[-300:]}")
        return checked_facts(event.get("facts"))

    def work(
        self,
        job: Event,
        payload: Mapping[str, bytes | Path],
        tell: Callable[[Event], None],
        judge: Callable[[Event], None],
    ) -> list[Event]:
        """Hand over a job, send what the agent lacks, collect its results.

        Args:
            job: As `agent/main.py` describes it.
            payload: Contents by the names in `job["files"]`.
            tell: Called with every event, and {"event": "upload", sent, of} while sending.
            judge: Called with the outputs of each case before it is measured; nothing is measured
                when it raises.

        Raises:
            AgentFailed: The job failed there, or the connection broke.
        """
        deadline = time.monotonic() + self.case_s * len(job["cases"])
        silence_s = _SILENCE_S if job["tool"] == "trtexec" else 600.0
        threading.Thread(target=self._beat, args=(job["silence_s"] / 4,), daemon=True).start()

        def events(last: str, **request: Any) -> Iterator[Event]:
            self._write((json.dumps(request) + "\n").encode())
            kind = ""
            while kind != last:
                event = self._next(min(silence_s, max(0.0, deadline - time.monotonic())))
                if time.monotonic() > deadline:
                    self._fault = f"no end of the work within {self.case_s / 3600:.2g} h per case"
                    event = None
                if event is None:
                    raise self._broken()
                tell(event)
                kind = event["event"]
                if kind == "failed":
                    reason = event["reason"][:MOST_SHOWN]
                    raise AgentFailed(f"on {self.where}: {reason}", hint=_mend(event["reason"]))
                yield event

        [*_, need] = events("need", op="open", **job)
        try:
            self._upload({name: payload[name] for name in need["names"]}, tell)
        except OSError as error:
            raise self._broken() from error
        for event in events("done", op="build"):
            if event["event"] == "outputs":
                judge(event)
        return [one for one in events("done", op="measure") if one["event"] == "result"]

    def close(self, *, forget: bool = True) -> None:
        """End the connection, and with it all that runs there.

        Args:
            forget: Remove a finished build too.
        """
        self._closed.set()
        with suppress(OSError, ValueError):
            if forget:
                self._write(b'{"op": "bye"}\n')
            self._stdin.close()
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if number is not None:
                with suppress(OSError):
                    os.killpg(self.process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_GRACE_S)
                return

    def _upload(self, contents: Mapping[str, bytes | Path], tell: Callable[[Event], None]) -> None:
        sizes = {name: _size(item) for name, item in contents.items()}
        sent, total = 0, sum(sizes.values())
        for name, item in contents.items():
            request = {"op": "file", "name": name, "size": sizes[name]}
            with self._writing:  # nothing comes between the parts of a file
                self._write((json.dumps(request) + "\n").encode())
                with io.BytesIO(item) if isinstance(item, bytes) else item.open("rb") as stream:
                    while chunk := stream.read(_CHUNK):
                        self._write(chunk)
                        sent += len(chunk)
                        tell({"event": "upload", "sent": sent, "of": total})

    def _beat(self, every_s: float) -> None:
        """Say that we are still here; the agent takes silence for a dead network."""
        with suppress(OSError, ValueError):
            while not self._closed.wait(every_s):
                self._write(b"\n")

    def _write(self, content: bytes) -> None:
        """Send all of it.

        Raises:
            OSError: The line is dead, or nobody there reads for `_SILENCE_S`.
        """
        left = memoryview(content)
        with self._writing:
            while left:  # past Python's buffer: closing must never wait for a line that is dead
                pipe = self._stdin.fileno()
                if not select.select([], [pipe], [], _SILENCE_S)[1]:
                    self._fault = "it does not read what it is sent"
                    raise TimeoutError(errno.ETIMEDOUT, self._fault)
                left = left[os.write(pipe, left) :]

    @property
    def _stdin(self) -> Any:
        return self.process.stdin

    def _next(self, patience_s: float) -> Event | None:
        """The next event; None when the line ended or stayed silent too long."""
        try:
            return self._events.get(timeout=patience_s)
        except queue.Empty:
            return None

    def _hear(self) -> None:
        """The agent's events in standard output; what a login shell prints is passed over."""
        stdout = self.process.stdout
        assert isinstance(stdout, io.BufferedReader)
        stream = EventStream(self._token)
        try:
            while chunk := stdout.read1(_CHUNK):
                for event in stream.feed(chunk):
                    self._events.put(event)
        except StreamFault as fault:
            self._fault = f"it sent {fault}"
        self._events.put(None)

    def _overhear(self) -> None:
        """The end of standard error, where ssh says why it gave up."""
        stderr = self.process.stderr
        assert isinstance(stderr, io.BufferedReader)
        while chunk := stderr.read1(_CHUNK):
            self._stderr = (self._stderr + chunk)[-MOST_ERROR_TEXT:]

    def _said(self) -> str:
        """The end of standard error; the thread that reads it may be a moment behind the end."""
        self._overhearing.join(2)
        return self._stderr.decode("utf-8", "replace")

    def _ended(self) -> int:
        try:
            return self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return -1

    def _broken(self) -> AgentFailed:
        self._closed.set()
        if self._fault:
            return AgentFailed(f"{self.where} cannot be measured: {self._fault}", hint=_NOT_OURS)
        said = [line.strip() for line in self._said().splitlines() if line.strip()]
        return AgentFailed(
            f"the connection to {self.where} broke" + (f": {said[-1][:300]}" if said else ""),
            hint="the same command with --resume picks up a finished build",
        )


@contextmanager
def open_link(host: Host | None, *, config: Path | None = None) -> Iterator[Link]:
    """An agent on `host`, or on this machine when None. What it built is kept for `--resume` only
    when the connection broke."""
    if host is None:
        link = Link([sys.executable, "-u", "-c", PROGRAM], where="this machine", host=None)
    else:
        link = Link(ssh_command(host, config), where=str(host), host=host)
    forget = True
    try:
        yield link
    except AgentFailed:
        forget = False
        raise
    finally:
        link.close(forget=forget)


def agent_source(token: str) -> str:
    """The agent's modules as one program, which makes them a package and runs it."""
    folder = Path(__file__).parent / "agent"
    lines = [
        "import sys, types",
        "package = sys.modules['hgkd_agent'] = types.ModuleType('hgkd_agent')",
    ]
    for name in _MODULES:
        full, source = f"hgkd_agent.{name}", (folder / f"{name}.py").read_text(encoding="utf-8")
        lines += [
            f"module = package.{name} = sys.modules[{full!r}] = types.ModuleType({full!r})",
            "module.__package__ = 'hgkd_agent'",
            f"exec(compile({source!r}, {full!r}, 'exec'), module.__dict__)",
        ]
    lines.append(f"package.ort.METHOD = {Path(method.__file__).read_text(encoding='utf-8')!r}")
    lines += [f"package.life.MARK = {mark_of(token).decode()!r}", "package.main.main()"]
    return "\n".join(lines) + "\n"


def _size(item: bytes | Path) -> int:
    return len(item) if isinstance(item, bytes) else item.stat().st_size


def _mend(reason: str) -> str:
    """A hint for the failures that have a usual mend."""
    low = reason.lower()
    if "mb free" in low:
        return "free some space in the home folder there"
    if "another session" in low:
        return "wait for it to end"
    if "unknown option" in low:
        return "this trtexec does not know a flag; please report its version"
    if "out of memory" in low or "cuda error" in low or "signal 9" in low:
        return "close other programs there, or give a smaller --batch"
    return "the lines are trtexec's own" if "trtexec" in low else ""
