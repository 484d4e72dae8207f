"""The conversation with a device: start its script, read its messages, stop it.

The same script runs on a local Jetson (as a child process) and on one behind SSH, so both are
measured by the same code. ssh's keepalive notices a dead network, our heartbeat tells the device,
and a watchdog that kills ssh bounds the time of a device that does not answer.
"""

from __future__ import annotations

import base64
import io
import os
import secrets
import signal
import subprocess
import tarfile
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from hgkd_edge.bench.edge.messages import MessageStream, StreamFault
from hgkd_edge.bench.edge.ssh import BOOTSTRAP, Host, explain, ssh_command
from hgkd_edge.bench.options import AnyPath, Progress
from hgkd_edge.errors import DeviceError, WorkFailed

__all__ = ["Files", "Finished", "Lines", "Link", "open_link", "stamped"]

Files = dict[str, bytes | Path]  # by their names on the device
Lines = list[tuple[float, str]]  # each with the device's second in which it was printed

MOST_CASE_S = 4 * 3600.0  # one case, all steps: a Nano may build a large engine for an hour
MOST_SHOWN = 400  # characters of a device's text in a message

# After this much silence the device assumes a dead network; see also `Link._beat`.
SILENCE_S = 60.0
# How long a session waits for another session: a dead one ends within SILENCE_S.
PATIENCE_S = 70
# trtexec's power is compared with that of an idle board.
IDLE_S = 2.0
_FACTS_S = 150.0
# How long ssh may take to exit: after its output ended, and after our last message.
_END_S = 10.0
_GRACE_S = 10.0
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Finished:
    """A program that succeeded on the device: its log, peak memory and output file."""

    log: Lines
    peak_kb: int
    result: str


class Link:
    """A script that runs on `host` (None: on this machine), which messages call `where`.

    Args:
        command: How to start it: an ssh command, or this machine's sh.
        case_s: Maximum seconds of a case, from its build to its last visit.
    """

    def __init__(
        self,
        command: list[str],
        *,
        where: str,
        host: Host | None,
        tell: Progress = lambda _what, _part: None,
        case_s: float = MOST_CASE_S,
    ) -> None:
        self.where, self.host, self.broken = where, host, False
        self._tell, self._case_s = tell, case_s
        # In a separate session: Ctrl-C in the terminal must not end ssh before we send `bye`.
        pipe: Any = {"bufsize": 0, **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)}
        self.process = subprocess.Popen(command, start_new_session=True, **pipe)
        self._stdin = cast(IO[bytes], self.process.stdin)
        self._stdout = cast(IO[bytes], self.process.stdout)
        self._mark = f"@hgkd-edge {secrets.token_hex(16)} "
        self._stream = MessageStream(self._mark.encode())
        self._arrived: deque[tuple[str, str]] = deque()
        self._fault = ""
        self._errors: deque[bytes] = deque(maxlen=16)  # the last ones that ssh printed
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._writing = threading.RLock()
        self._closed = threading.Event()
        self._watchdog = threading.Timer(0, self._kill)
        self._allow(_FACTS_S)

    def facts(self) -> dict[str, str]:
        """Send the script, return the device's facts: raw text by name.

        Raises:
            DeviceError: The host cannot be reached.
        """
        self._tell(f"{self.where}: connecting", 0.0)
        script = (
            f"mark='{self._mark}' silence={SILENCE_S} patience={PATIENCE_S} idle={IDLE_S}\n"
            + Path(__file__).with_name("device.sh").read_text(encoding="utf-8")
        )
        with suppress(OSError):  # a refused connection is reported below, with ssh's reason
            self._write(base64.b64encode(script.encode()) + b"\n")
        message = self._next()
        if message is not None and message[0] == "facts":
            self._watchdog.cancel()  # planning the job may take longer
            threading.Thread(target=self._beat, daemon=True).start()
            parts = [part.partition("\n") for part in message[1].split(self._mark)[1:]]
            return {name: text.strip() for name, _end, text in parts}
        if message is not None:
            self._fault = f"it sent '{message[0]}' instead of its facts"
        if self._fault:
            raise self._broken()
        if self.host is None:
            raise DeviceError(f"the measuring process did not start: {self._reported()[-300:]}")
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_S)
        raise explain(self.host, self.process.returncode or -1, self._reported())

    def open(self, job: str, files: Files, *, resume: bool, cases: int) -> None:
        """Lock the folder of a job, and send its files.

        With `resume`, what an earlier session finished there is kept. The number of cases sets the
        time limit of the whole job.

        Raises:
            WorkFailed: Another session is measuring, or the connection broke.
        """
        hours = f"{self._case_s / 3600:.2g} h per case"
        self._allow(self._case_s * cases, f"no end of the work within {hours}")
        self.request(f"{job} {'yes' if resume else 'no'}\n".encode())
        answer, _text = self.receive("ready", "waiting", "taken")
        if answer == "waiting":
            self._tell(f"{self.where}: an earlier session is still at work on this device", 0.0)
            answer, _text = self.receive("ready", "taken")
        if answer == "taken":
            raise WorkFailed(
                f"on {self.where}: another session is measuring on this device",
                hint="wait for it to end",
            )
        with tempfile.TemporaryFile() as archive, self._writing:
            pack(files, archive)
            total = archive.tell()
            archive.seek(0)
            self.request(f"{total}\n".encode())
            while chunk := archive.read(_CHUNK):
                self._tell(f"{self.where}: upload", archive.tell() / total)
                self.request(chunk)

    def request(self, content: bytes) -> None:
        """Send a line, or a part of the archive; a broken connection is `WorkFailed`."""
        try:
            self._write(content)
        except OSError as error:
            raise self._broken() from error

    def receive(self, *names: str) -> tuple[str, str]:
        """Name and content of the next message; one of another name is `WorkFailed`."""
        message = self._next()
        if message is not None and message[0] not in names:
            self._fault = f"it sent '{message[0]}' instead of '{names[0]}'"
        if message is None or self._fault:
            raise self._broken()
        return message

    def finished(self, doing: str, program: str, part: float = 0.0) -> Finished:
        """The result of the program that the device is running.

        Raises:
            WorkFailed: It failed; the message ends with its last lines.
        """
        self._tell(f"{self.where}: {doing}", part)
        figures, _end, rest = self.receive("done")[1].partition("\n")
        code, peak_kb, count = map(int, figures.split())
        *lines, result = rest.split("\n", count)
        log = stamped(lines)
        if code:
            raise _failure(self.where, [line for _second, line in log], program, code)
        return Finished(log, peak_kb, result)

    def close(self, *, forget: bool = True) -> None:
        """End the connection and everything that runs on the device, finished builds included
        unless they are not to be forgotten."""
        self._closed.set()
        self._allow(_GRACE_S)
        with suppress(OSError):
            if forget:
                self._write(b"bye\n")
        self._stdin.close()
        while self._stdout.read(_CHUNK):  # the device ends its work before it ends the connection
            pass
        self.process.wait()
        self._watchdog.cancel()

    def _allow(self, seconds: float, fault: str = "") -> None:
        """Kill the connection after this time, and give this reason."""
        self._watchdog.cancel()
        self._watchdog = threading.Timer(seconds, self._kill, [fault])
        self._watchdog.daemon = True
        self._watchdog.start()

    def _kill(self, fault: str) -> None:
        self._fault = self._fault or fault
        with suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _beat(self) -> None:
        """Send a heartbeat; the device treats silence as a dead network."""
        with suppress(OSError, ValueError):
            while not self._closed.wait(SILENCE_S / 4):
                self._write(b"\n")

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        with self._writing:
            while left:
                left = left[self._stdin.write(left) :]

    def _listen(self) -> None:
        while chunk := cast(IO[bytes], self.process.stderr).read(1 << 12):
            self._errors.append(chunk)

    def _reported(self) -> str:
        """The end of what ssh printed."""
        self._listener.join(2)  # it may give its reason a moment after its output ended
        return b"".join(list(self._errors)).decode("utf-8", "replace")

    def _next(self) -> tuple[str, str] | None:
        """The next message; None when the connection ended."""
        while not self._arrived:
            chunk = self._stdout.read(_CHUNK)
            try:
                self._arrived.extend(self._stream.feed(chunk))
            except StreamFault as fault:
                self._fault = f"it sent {fault}"
            if self._fault or not chunk:
                return None
        return self._arrived.popleft()

    def _broken(self) -> WorkFailed:
        self.broken = True
        if self._fault:
            return WorkFailed(
                f"{self.where} cannot be measured: {self._fault}",
                hint="log in there and check what runs; do not trust its numbers",
            )
        lines = [line.strip() for line in self._reported().splitlines() if line.strip()]
        return WorkFailed(
            f"the connection to {self.where} broke" + (f": {lines[-1][:300]}" if lines else ""),
            hint="the same command with --resume picks up a finished build",
        )


def _failure(where: str, lines: list[str], program: str, code: int) -> WorkFailed:
    """The lines of a program that explain its failure, and the usual fix."""
    errors = [line for line in lines if "[E]" in line or "error" in line.lower()]
    how = f"was ended by signal {code - 128}" if code > 128 else f"ended with code {code}"
    reason = f"{program} {how}: {' | '.join((errors or lines)[-8:])}"
    low = reason.lower()
    hint = f"the lines are {program}'s own"
    if "unknown option" in low:
        hint = f"this {program} does not know a flag; please report its version"
    elif any(sign in low for sign in ("out of memory", "cuda error", "signal 9")):
        hint = "close other programs there, or give a smaller --batch"
    return WorkFailed(f"on {where}: {reason[:MOST_SHOWN]}", hint=hint)


@contextmanager
def open_link(
    host: Host | None, *, tell: Progress, config: AnyPath | None = None
) -> Iterator[Link]:
    """The script on `host`, or on this machine when None. Builds are kept for `--resume` only when
    the connection broke."""
    command = ssh_command(host, config) if host else ["sh", "-c", BOOTSTRAP]
    link = Link(command, where=str(host or "this machine"), host=host, tell=tell)
    try:
        yield link
    finally:
        link.close(forget=not link.broken)


def pack(files: Mapping[str, bytes | Path], archive: IO[bytes]) -> None:
    """Write files to an archive under the names given; links are followed."""
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, item in files.items():
            with io.BytesIO(item) if isinstance(item, bytes) else item.open("rb") as stream:
                entry = tarfile.TarInfo(name)
                entry.size = len(item) if isinstance(item, bytes) else item.stat().st_size
                tar.addfile(entry, stream)


def stamped(lines: list[str]) -> Lines:
    """Lines with their times in seconds, as the script's `stamp` writes them."""
    parts = (line.partition(" ") for line in lines)
    return [(float(second), line) for second, _space, line in parts]
