"""What this process has to undo before it ends, and how it speaks to the other end."""

import base64
import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from typing import Any, Callable  # Python 3.6 too

# Begins each of our lines. The sender puts a random word into it, so that nothing which a login
# shell or a tool prints can be taken for it.
MARK = "@hgkd-edge "
# A line goes out in one write; up to 4096 bytes, nothing comes between.
PIECE = 3900

_speaking = threading.Lock()
_starting = threading.RLock()
_running: list = []


class Scratch(object):
    """The folder of the present job, and the lock file that is held to the end."""

    folder = ""
    lock = ""


def send(event: str, **fields: Any) -> None:
    """One event to the other end: each line is the mark, `+` when more follows or `.`, a piece."""
    fields["event"] = event
    text = json.dumps(fields)
    try:
        with _speaking:
            for start in range(0, len(text), PIECE):
                more = "+" if start + PIECE < len(text) else "."
                left = (MARK + more + text[start : start + PIECE] + "\n").encode("ascii")
                while left:  # past Python's buffer, so that a line goes out whole
                    left = left[os.write(sys.stdout.fileno(), left) :]
    except (OSError, ValueError):
        leave(keep=True)


def pack(text: str) -> str:
    """A long text as a short one that JSON can carry."""
    return base64.b64encode(zlib.compress(text.encode("utf-8"))).decode("ascii")


def start(argv: list, **options: Any) -> subprocess.Popen:
    """A process that ends with this one, in a group of its own."""
    with _starting:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, start_new_session=True, **options
        )
        _running.append(process)
    return process


def end(process: subprocess.Popen) -> None:
    """Terminate a process and its group, then make sure."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except OSError:
            pass
        try:
            process.wait(3)
            return
        except subprocess.TimeoutExpired:
            continue


def leave(keep: bool) -> None:
    """End now, from whatever thread: stop what runs, remove the folder.

    `keep`: leave the folder where it holds a finished build, which a later session can pick up.
    """
    _starting.acquire()  # and never released: nothing starts any more
    for process in _running:
        if process.poll() is None:
            end(process)
    built = Scratch.folder and glob.glob(os.path.join(glob.escape(Scratch.folder), "*.plan.json"))
    if Scratch.folder and not (keep and built):
        shutil.rmtree(Scratch.folder, ignore_errors=True)
    try:
        os.remove(Scratch.lock)
    except OSError:
        pass
    os._exit(0)


def leave_when_silent(heard: Callable, silence_s: float) -> None:
    """Take `silence_s` without a word for a dead network: it tells neither end, and sshd may hold
    on for hours. `heard()` is when the last word came."""

    def watch() -> None:
        while time.monotonic() - heard() < silence_s:
            time.sleep(silence_s / 8.0)
        leave(keep=True)

    in_background(watch)


def in_background(work: Callable) -> threading.Thread:
    """Run a function in a thread that does not keep the process alive."""
    thread = threading.Thread(target=work)
    thread.daemon = True
    thread.start()
    return thread
