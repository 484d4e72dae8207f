"""The faults. Each is tried on one job, and returns what is wrong afterwards, one line each."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, tzinfo
from functools import partial
from pathlib import Path

from benchmarks.faults import child, whole
from benchmarks.faults.child import Ended
from benchmarks.faults.jobs import NEXT, Next, Stage

__all__ = ["FAULTS", "Trial"]

LOST, REASON = "a decoding thread failed", "the decoder broke"


class Trial:
    """One fault during one job.

    Args:
        stage: The job, and what it began with.
        folder: Where it runs.
        chance: Chooses the moment.
    """

    def __init__(self, stage: Stage, folder: Path, chance: random.Random) -> None:
        self.stage, self.job, self.chance = stage, stage.job, chance
        self.folder = stage.reset(folder)
        self.log = stage.before.parent / "log.txt"
        self.moment = chance.uniform(0.0, stage.seconds)
        self.struck = True  # whether the fault met the command, which may have ended before
        self.wrong: list[str] = []

    def start(self, before: Callable[[], object] | None = None) -> child.Child:
        return child.start(self.job.command(), self.folder, self.log, before)

    def interrupted(self, number: int) -> Ended:
        """Run the job and send it a signal at the chosen moment."""
        process = self.start()
        self.struck = process.signal_after(self.moment, number)
        return process.wait()

    def check(self, condition: bool, otherwise: str) -> None:
        if not condition:
            self.wrong.append(otherwise)

    def check_whole(self) -> None:
        self.wrong += whole.problems(self.folder)

    def check_message(self, ended: Ended, *codes: int) -> None:
        """The command ended with one of the codes, with one line instead of a traceback."""
        last = ended.printed[-1500:]
        self.check(ended.code in codes, f"ended with {ended.code}: {last}")
        self.check("Traceback" not in ended.printed, f"shows a traceback: {last}")
        self.check("bug in hgkd-edge" not in ended.printed, f"calls itself a bug: {last}")

    def recover(self) -> list[str]:
        """Continue the job and run the next command; both must work as if nothing had happened."""
        ended = child.run(self.job.command(self.folder), self.folder, self.log)
        self.check_message(ended, 0)
        found = whole.results(self.folder, self.job.results or "-")
        self.check(found == self.stage.wanted, f"other results: {found} {self.stage.wanted}")
        self.check_whole()
        left = whole.leftovers(self.folder)
        self.check(not left, f"left behind: {left}")
        if working := [each for each in NEXT if each.works_after(self.job)]:
            self.follow(self.chance.choice(working), 0)
        return self.wrong

    def follow(self, command: Next, *codes: int) -> None:
        """Run another command, which ends with one of the codes and leaves whole files."""
        known = len(self.wrong)
        self.check_message(child.run(command.arguments, self.folder, self.log), *codes)
        self.check_whole()
        self.wrong[known:] = [f"{command.arguments[0]}: {line}" for line in self.wrong[known:]]

    def meet(self) -> None:
        """In half of the trials, another command sees what was left before the job continues."""
        self.check_whole()
        if self.chance.random() < 0.5:
            self.follow(self.chance.choice(NEXT), 0, 1, 2)


def kill(trial: Trial) -> list[str]:
    """kill -9."""
    trial.interrupted(signal.SIGKILL)
    trial.meet()
    return trial.recover()


def terminate(trial: Trial) -> list[str]:
    """SIGTERM, as schedulers send it."""
    trial.check_message(trial.interrupted(signal.SIGTERM), 0, 130, 143, -signal.SIGTERM)
    trial.meet()
    return trial.recover()


def ctrl_c(trial: Trial) -> list[str]:
    """Ctrl-C."""
    trial.check_message(trial.interrupted(signal.SIGINT), 0, 130)
    trial.meet()
    return trial.recover()


def full_disk(trial: Trial) -> list[str]:
    """A disk that is full at some write: a tmpfs, else a limit on the size of every file.

    In half of the trials, temporary files are on the tmpfs too.
    """
    before: Callable[[], object] | None = None
    with contextlib.ExitStack() as mounted:
        small = mounted.enter_context(_small_disk(trial.folder, trial.stage, trial.chance))
        if not small:
            before = partial(_limit_files, int(10 ** trial.chance.uniform(2, 6)))
        elif trial.chance.random() < 0.5:
            before = partial(_put_temporary_files, trial.folder / "tmp")
        process = trial.start(before).wait()
        trial.struck = process.code != 0
        trial.check_message(process, 0, 1, 2)
        trial.check_whole()
        left = list(trial.folder.glob("tmp/*"))
        trial.check(not left, f"left in TMPDIR: {left}")
        if small:
            subprocess.run(["mount", "-o", "remount,size=1g", trial.folder], check=True)
        return trial.recover()


def read_only(trial: Trial) -> list[str]:
    """Folders that lose their write permission midway; the command runs as an ordinary user."""
    _give_away(trial.folder)
    process = trial.start(_become_nobody)
    ended = False
    while time.monotonic() - process.began < trial.moment and not ended:
        ended = process.ended_already()
        time.sleep(0.002)
    trial.struck = not ended
    _set_modes(trial.folder, 0o555)
    trial.check_message(process.wait(), 0, 1, 2)
    _set_modes(trial.folder, 0o777)
    trial.check_whole()
    return trial.recover()


def no_locks(trial: Trial) -> list[str]:
    """A file system without flock, and a reader that keeps every file open."""
    stop, opened = threading.Event(), dict[Path, int]()

    def hold_open() -> None:
        while not stop.wait(0.01):
            for file in trial.folder.rglob("*"):
                with contextlib.suppress(OSError):
                    if file not in opened and file.is_file() and len(opened) < 500:
                        opened[file] = os.open(file, os.O_RDONLY)

    process = trial.start(_refuse_locks)  # forked before there is a second thread
    reader = threading.Thread(target=hold_open)
    reader.start()
    try:
        trial.check_message(process.wait(), 0)
    finally:
        stop.set()
        reader.join()
        for descriptor in opened.values():
            os.close(descriptor)
    trial.check_whole()
    return trial.recover()


def two_at_once(trial: Trial) -> list[str]:
    """Two processes that do the same in one folder: one may be refused, none breaks anything."""
    first = trial.start()
    time.sleep(trial.moment / 4)
    log = trial.log.with_name("second.txt")
    second = child.start(trial.job.command(trial.folder), trial.folder, log)
    endings = [first.wait(), second.wait()]
    for ended in endings:
        trial.check_message(ended, 0, 2)
    trial.check(any(e.code == 0 for e in endings), "neither of the two came to an end")
    trial.check_whole()
    return trial.recover()


def stale_lock(trial: Trial) -> list[str]:
    """A lock and a temporary file in the run, of a machine that was switched off."""
    trial.interrupted(signal.SIGKILL)
    run = trial.folder / "runs" / "tiny"
    trial.struck = run.is_dir() and trial.job.name != "predict"  # which writes elsewhere
    if trial.struck:
        (run / ".lock").write_text("1\n")
        (run / ".report.html.0123456789abcdef.tmp").write_text("<html>")
    return trial.recover()


def clock_jumps(trial: Trial) -> list[str]:
    """A clock that jumps by up to a day, forwards and backwards, at every look.

    `time.time` and `datetime.now` jump, and every file's time is moved once by as much.
    """
    _spoil_times(trial.folder, trial.chance)
    trial.check_message(trial.start(lambda: _spoil_clock(trial.chance.random())).wait(), 0)
    trial.check_whole()
    return trial.recover()


def lost_decoder(trial: Trial) -> list[str]:
    """Decoding threads in which every tenth image raises.

    A `ValueError` skips the image; a `MemoryError` ends the command, which then continues with all.
    """
    no_memory = trial.chance.random() < 0.5
    ended = trial.start(partial(_break_decoding, MemoryError if no_memory else ValueError)).wait()
    trial.struck = LOST in ended.printed  # not all jobs decode
    compares = trial.job.name == "compare"  # which names a run that it cannot score
    trial.check_message(ended, int(trial.struck and no_memory and not compares))
    trial.check_whole()
    if trial.struck and no_memory:
        trial.check("memory" in ended.printed, f"does not name memory: {ended.printed[-1500:]}")
    elif trial.struck:
        records = [file.read_text() for file in trial.folder.glob("runs/tiny/*.json")]
        named = any(REASON in text for text in (ended.printed, *records))
        trial.check(named, "does not name the image that it skips")
        trial.stage.reset(trial.folder)  # other images were trained on: nothing to compare
    return trial.recover()


def no_memory(trial: Trial) -> list[str]:
    """Memory that runs out: an address space little larger than what is in use."""
    megabytes = int(10 ** trial.chance.uniform(0.5, 2.5))
    ended = trial.start(lambda: _limit_memory(megabytes)).wait()
    trial.struck = ended.code != 0
    # A library may abort the process where it cannot report the failure.
    aborted = {-signal.SIGABRT, -signal.SIGSEGV, 134, 139}
    if ended.code not in aborted:
        trial.check_message(ended, 0, 1, 2)
        named = ended.code == 0 or "memory" in ended.printed
        trial.check(named, f"does not name memory: {ended.printed[-1500:]}")
    trial.check_whole()
    return trial.recover()


FAULTS = (
    *(kill, terminate, ctrl_c, full_disk, read_only, no_locks),
    *(two_at_once, stale_lock, clock_jumps, lost_decoder, no_memory),
)


@contextlib.contextmanager
def _small_disk(folder: Path, stage: Stage, chance: random.Random) -> Iterator[bool]:
    """Put a file system with too little room below the folder; yields whether that worked."""
    command = ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        yield False
        return
    try:
        stage.reset(folder)
        room = os.statvfs(folder)
        used = (room.f_blocks - room.f_bfree) * room.f_frsize
        size = used + int(chance.uniform(0, stage.written))
        subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)
        yield True
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _limit_files(limit: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def _put_temporary_files(folder: Path) -> None:
    folder.mkdir()
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)


def _limit_memory(megabytes: int) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _become_nobody() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


def _give_away(folder: Path) -> None:
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 65534, 65534, follow_symlinks=False)


def _set_modes(folder: Path, mode: int) -> None:
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            if path.is_dir() and not path.is_symlink():
                path.chmod(mode)


def _refuse_locks() -> None:
    import fcntl

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    fcntl.flock = flock


def _spoil_times(folder: Path, chance: random.Random) -> None:
    for file in folder.rglob("*"):
        moved = file.lstat().st_mtime + chance.uniform(-86_400, 86_400)
        os.utime(file, (moved, moved), follow_symlinks=False)


def _spoil_clock(seed: float) -> None:
    real, chance = time.time, random.Random(seed)
    time.time = lambda: real() + chance.uniform(-86_400, 86_400)

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Jumping:
            return cls.fromtimestamp(time.time(), tz)

    from hgkd_edge.bench import measurement  # which the other commands have not imported
    from hgkd_edge.video import decoding

    for module in (measurement, decoding):
        module.datetime = Jumping  # type: ignore[attr-defined]


def _break_decoding(kind: type[Exception]) -> None:
    from hgkd_edge.data import decode

    real, calls = decode.decode_into, iter(range(10**9))

    def decode_into(*arguments: object, **options: object) -> str:
        if next(calls) % 10 == 9:
            print(LOST, file=sys.stderr, flush=True)
            raise kind(REASON)
        return real(*arguments, **options)  # type: ignore[arg-type]

    decode.decode_into = decode_into
