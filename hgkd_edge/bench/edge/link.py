"""The conversation with a device: start its script, read its messages, stop it.

The same script runs on a local Jetson (as a child process) and on one behind SSH, so both are
measured by the same code. A device may be broken or hostile: everything it sends is bounded by the
limits below.
"""

from __future__ import annotations

import base64
import errno
import io
import os
import secrets
import select
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hgkd_edge.bench.edge.messages import MessageStream, StreamFault, stamped
from hgkd_edge.bench.edge.ssh import BOOTSTRAP, Host, explain, ssh_command
from hgkd_edge.errors import DeviceError, UserError

__all__ = ["Finished", "Link", "WorkFailed", "open_link"]

MOST_CASE_S = 4 * 3600.0  # one case, all steps: a Nano may build a large engine for an hour
MOST_SHOWN = 400  # characters of a device's text in a message
MOST_ERRORS = 64 << 10  # bytes of standard error that are kept

# After this much silence the device assumes a dead network; see also `Link._beat`.
SILENCE_S = 60.0
# How long a session waits for another session: a dead one ends within SILENCE_S.
PATIENCE_S = 70
# trtexec's power is compared with that of an idle board.
IDLE_S = 2.0
# The device sends a message every two seconds while it works; this outlasts ssh's keepalive.
_SILENCE_S = 90.0
_FACTS_S = 150.0
# How long ssh may take to exit: after its output ended, and after our last message.
_END_S = 10.0
_GRACE_S = 10.0
_CHUNK = 1 << 18
_NOT_OURS = "log in there and check what runs; do not trust its numbers"


class WorkFailed(UserError):
    """The work on the device failed, or the connection broke. Exit code 1: the work had started."""

    exit_code = 1


@dataclass(frozen=True)
class Finished:
    """A program that succeeded on the device: its lines with times, peak memory and output file."""

    log: list[tuple[float, str]]
    peak_kb: int
    result: str

    def second_of(self, text: str) -> float | None:
        """When a line with this text arrived."""
        return next((second for second, line in self.log if text in line), None)


class Link:
    """A running script.

    Args:
        command: How to start it: an ssh command, or this machine's sh.
        where: Name of the machine for messages.
        host: The SSH host, or None for this machine.
        tell: Called with the current step and its completed fraction.
        case_s: Maximum seconds of a case, from its build to its last visit.
    """

    def __init__(
        self,
        command: list[str],
        *,
        where: str,
        host: Host | None,
        tell: Callable[[str, float], None] = lambda _what, _part: None,
        case_s: float = MOST_CASE_S,
    ) -> None:
        self.where = where
        self.host = host
        self.broken = False
        self._doing = "connecting"
        self._tell = tell
        self._case_s = case_s
        self._deadline = float("inf")
        # In a separate session: Ctrl-C in the terminal must not end ssh before we send `bye`.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        stdin, stdout, stderr = self.process.stdin, self.process.stdout, self.process.stderr
        assert stdin is not None
        assert stdout is not None
        assert stderr is not None
        os.set_blocking(stdin.fileno(), False)  # see `_write`
        self._stdin, self._stdout = stdin, stdout
        self._pipes: list[IO[bytes]] = [stdout, stderr]
        self._mark = f"@hgkd-edge {secrets.token_hex(16)} "
        self._stream = MessageStream(self._mark.encode())
        self._arrived: deque[tuple[str, str]] = deque()
        self._fault = ""
        self._errors = b""
        self._writing = threading.RLock()
        self._closed = threading.Event()

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
        message = self._next(_FACTS_S)
        if message is not None and message[0] == "facts":
            threading.Thread(target=self._beat, daemon=True).start()
            parts = [part.partition("\n") for part in message[1].split(self._mark)[1:]]
            return {name: text.strip() for name, _end, text in parts}
        if message is not None:
            self._fault = f"it sent '{message[0]}' instead of its facts"
        if self._fault:
            raise self._broken()
        finding = self._errors.decode("utf-8", "replace")
        if self.host is None:
            raise DeviceError(f"the measuring process did not start: {finding.strip()[-300:]}")
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_S)
        raise explain(self.host, self.process.returncode or -1, finding)

    def open(
        self, job: str, files: Mapping[str, bytes | Path], *, resume: bool, cases: int
    ) -> None:
        """Lock the folder of a job, and send its files.

        Args:
            job: Name of the folder: the same for the same work by the same builder.
            files: What the steps need, by name.
            resume: Keep what an earlier session finished there.
            cases: Number of cases, for the overall time limit.

        Raises:
            WorkFailed: The folder is in use, the disk is full, or the connection broke.
        """
        self._deadline = time.monotonic() + self._case_s * cases
        self.request(f"{job} {'yes' if resume else 'no'}")
        free = self.receive("free", or_="taken").split()
        if not free:
            raise WorkFailed(
                f"on {self.where}: another session is measuring on this device",
                hint="wait for it to end",
            )
        size = sum(
            len(one) if isinstance(one, bytes) else one.stat().st_size for one in files.values()
        )
        kilobytes = int(free[-3])  # of `df -P`: ... available, used in percent, mounted on
        if kilobytes << 10 < 4 * size:
            raise WorkFailed(
                f"on {self.where}: {kilobytes >> 10} MB free on the device, about "
                f"{(4 * size) >> 20} MB needed",
                hint="free some space in the home folder there",
            )
        with tempfile.TemporaryFile() as archive:
            pack(files, archive)
            self._upload(archive)

    def request(self, line: str) -> None:
        """Send a line.

        Raises:
            WorkFailed: The connection broke.
        """
        try:
            self._write(f"{line}\n".encode())
        except OSError as error:
            raise self._broken() from error

    def receive(self, name: str, *, or_: str = "") -> str:
        """The content of the next message, which must have this name (or that of `or_`).

        Raises:
            WorkFailed: The message has another name, or the connection broke.
        """
        while True:
            message = self._next(min(_SILENCE_S, max(0.0, self._deadline - time.monotonic())))
            if time.monotonic() > self._deadline:
                self._fault = f"no end of the work within {self._case_s / 3600:.2g} h per case"
                raise self._broken()
            if message is None:
                raise self._broken()
            found, text = message
            if found in (name, or_):
                return text
            if found != "progress":
                self._fault = f"it sent '{found}' in place of '{name}'"
                raise self._broken()
            self._tell(f"{self.where}: {self._doing}: {text.strip()[-60:]}", 0.0)

    def finished(self, doing: str, program: str, part: float = 0.0) -> Finished:
        """The result of the program that the device is running.

        Args:
            doing: The current step, for messages.
            program: The program's name, for messages.
            part: The completed fraction of the step.

        Raises:
            WorkFailed: It failed; the message ends with its last lines.
        """
        self._doing = doing
        self._tell(f"{self.where}: {doing}", part)
        log = stamped(self.receive("log"))
        code, peak_kb = (int(number) for number in self.receive("ended").split())
        if code:
            raise self._failure([line for _second, line in log], program, code)
        return Finished(log, peak_kb, self.receive("result"))

    def close(self, *, forget: bool = True) -> None:
        """End the connection and everything that runs on the device.

        Args:
            forget: Also remove a finished build.
        """
        self._closed.set()
        with suppress(OSError, ValueError):
            if forget:
                self._write(b"bye\n")
            self._stdin.close()
        until = time.monotonic() + _GRACE_S
        while self._pipes and self._read(until - time.monotonic()):
            self._arrived.clear()
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if number is not None:
                with suppress(OSError):
                    os.killpg(self.process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_GRACE_S)
                return

    def _upload(self, archive: Any) -> None:
        total = archive.tell()
        archive.seek(0)
        try:
            with self._writing:  # no beat between the parts of the archive
                self._write(f"{total}\n".encode())
                while chunk := archive.read(_CHUNK):
                    self._write(chunk)
                    self._tell(f"{self.where}: upload", archive.tell() / total)
        except OSError as error:
            raise self._broken() from error

    def _beat(self) -> None:
        """Send a heartbeat; the device treats silence as a dead network."""
        with suppress(OSError, ValueError):
            while not self._closed.wait(SILENCE_S / 4):
                self._write(b"\n")

    def _write(self, content: bytes) -> None:
        """Send all bytes.

        Raises:
            OSError: The connection is dead, or the device does not read for `_SILENCE_S`.
        """
        left = memoryview(content)
        with self._writing:
            while left:  # bypass Python's buffer: closing must never wait for a dead connection
                pipe = self._stdin.fileno()
                if not select.select([], [pipe], [], _SILENCE_S)[1]:
                    self._fault = "it does not read what it is sent"
                    raise TimeoutError(errno.ETIMEDOUT, self._fault)
                left = left[os.write(pipe, left) :]

    def _next(self, patience_s: float) -> tuple[str, str] | None:
        """The next message; None when the connection ended or stayed silent too long."""
        until = time.monotonic() + patience_s
        while not self._arrived:
            if self._stdout not in self._pipes:  # ssh reports the reason a moment later
                until = min(until, time.monotonic() + 2)
            if not self._pipes or not self._read(until - time.monotonic()):
                return None
        return self._arrived.popleft()

    def _read(self, patience_s: float) -> bool:
        """Read available data; False if there is none."""
        able = select.select(self._pipes, [], [], patience_s)[0] if patience_s > 0 else []
        for pipe in able:
            chunk = os.read(pipe.fileno(), _CHUNK)
            if not chunk:
                self._pipes.remove(pipe)
            elif pipe is not self._stdout:
                self._errors = (self._errors + chunk)[-MOST_ERRORS:]
            else:
                try:
                    self._arrived.extend(self._stream.feed(chunk))
                except StreamFault as fault:
                    self._fault = f"it sent {fault}"
                    self._pipes = []
                    break
        return bool(able)

    def _failure(self, lines: list[str], program: str, code: int) -> WorkFailed:
        """The lines of a program that explain its failure, and the usual fix."""
        errors = [line for line in lines if "[E]" in line or "error" in line.lower()]
        how = f"was ended by signal {code - 128}" if code > 128 else f"ended with code {code}"
        reason = f"{program} {how}: {' | '.join((errors or lines)[-8:])}"
        low = reason.lower()
        hint = f"the lines are {program}'s own"
        if "unknown option" in low:
            hint = f"this {program} does not know a flag; please report its version"
        elif "out of memory" in low or "cuda error" in low or "signal 9" in low:
            hint = "close other programs there, or give a smaller --batch"
        return WorkFailed(f"on {self.where}: {reason[:MOST_SHOWN]}", hint=hint)

    def _broken(self) -> WorkFailed:
        self.broken = True
        self._closed.set()
        if self._fault:
            return WorkFailed(f"{self.where} cannot be measured: {self._fault}", hint=_NOT_OURS)
        finding = self._errors.decode("utf-8", "replace").split("\n")
        finding = [line.strip() for line in finding if line.strip()]
        return WorkFailed(
            f"the connection to {self.where} broke" + (f": {finding[-1][:300]}" if finding else ""),
            hint="the same command with --resume picks up a finished build",
        )


@contextmanager
def open_link(
    host: Host | None, *, tell: Callable[[str, float], None], config: Path | None = None
) -> Iterator[Link]:
    """The script on `host`, or on this machine when None. Builds are kept for `--resume` only when
    the connection broke."""
    if host is None:
        link = Link(["sh", "-c", BOOTSTRAP], where="this machine", host=None, tell=tell)
    else:
        link = Link(ssh_command(host, config), where=str(host), host=host, tell=tell)
    try:
        yield link
    finally:
        link.close(forget=not link.broken)


def pack(files: Mapping[str, bytes | Path], archive: Any) -> None:
    """Write files to an archive under the names given; links are followed."""
    with tarfile.open(fileobj=archive, mode="w", dereference=True) as tar:
        for name, item in files.items():
            with io.BytesIO(item) if isinstance(item, bytes) else item.open("rb") as stream:
                entry = tarfile.TarInfo(name)
                entry.size = len(item) if isinstance(item, bytes) else item.stat().st_size
                tar.addfile(entry, stream)
