"""Talking to the other end: JSON lines out, JSON lines and raw bytes in."""

import base64
import json
import os
import select
import signal
import sys
import threading
import time
import zlib

from .token import TOKEN

# Begins each of our lines. It ends with the random word that this connection was given, so that
# nothing which a login shell or a tool prints can be taken for it.
MARK = "@hgkd-edge " + TOKEN + " "
# A line goes out in one write; up to 4096 bytes, nothing comes between.
PIECE = 3900

_lock = threading.Lock()


class Stop(Exception):
    """The other end asked to stop, or went away; `dropped` says which."""

    def __init__(self, dropped):
        Exception.__init__(self, "connection lost" if dropped else "stopped on request")
        self.dropped = dropped


class State(object):
    """Whether to go on. Set by the thread that watches standard input.

    `when_dropped` is called once when the line is found dead; `wanted_elsewhere` tells whether a
    newer session waits for the folder of this one.
    """

    def __init__(self):
        self.cancelled = threading.Event()
        self.dropped = threading.Event()
        self.approved = threading.Event()
        self.heard = self.silence_s = None
        self.when_dropped = None
        self.wanted_elsewhere = lambda: False

    def check(self, building=False):
        """Raise Stop when asked to stop, or when the line is dead.

        A dead line does not end a build: an engine that took minutes is worth finishing, and the
        next connection can pick it up.
        """
        if self.cancelled.is_set():
            raise Stop(dropped=False)
        if self.heard is not None and time.monotonic() - self.heard > self.silence_s:
            self.dropped.set()
        if not self.dropped.is_set():
            return
        call, self.when_dropped = self.when_dropped, None
        if call:
            call()
        if not building:
            raise Stop(dropped=True)
        if self.wanted_elsewhere():
            raise Stop(dropped=False)


STATE = State()


def send(event, **fields):
    """One event to the other end; a broken pipe only marks the line as dropped.

    Each line is the mark, `+` when more of the event follows or `.` when it ends, and a piece.
    """
    fields["event"] = event
    text = json.dumps(fields)
    try:
        with _lock:
            for start in range(0, len(text), PIECE):
                more = "+" if start + PIECE < len(text) else "."
                write_line(MARK + more + text[start : start + PIECE] + "\n")
    except (OSError, ValueError):
        STATE.dropped.set()


def write_line(line):
    """Past Python's buffer, so that a line goes out whole."""
    left = line.encode("ascii")
    while left:
        left = left[os.write(sys.stdout.fileno(), left) :]


def pack(text):
    """A long text as a short one that JSON can carry."""
    return base64.b64encode(zlib.compress(text.encode("utf-8"))).decode("ascii")


def wait_for_go():
    """Wait until the other end has looked at what was sent and lets us go on."""
    while not STATE.approved.is_set():
        STATE.check()
        time.sleep(0.02)


def receive():
    """The next JSON line; Stop when the other end is gone."""
    line = sys.stdin.buffer.readline()
    if not line:
        raise Stop(dropped=True)
    return json.loads(line.decode("utf-8"))


def receive_bytes(size, path, silence_s):
    """Exactly `size` raw bytes into a file; Stop when they end early or do not come."""

    def too_long(*_):
        raise Stop(dropped=True)

    left = size
    signal.signal(signal.SIGALRM, too_long)
    try:
        with open(path, "wb") as out:
            while left:
                signal.setitimer(signal.ITIMER_REAL, silence_s)
                chunk = sys.stdin.buffer.read(min(left, 1 << 16))
                if not chunk:
                    raise Stop(dropped=True)
                out.write(chunk)
                left -= len(chunk)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def heed_interruption():
    """Raise Stop when something came, or ended, at a moment when nothing is due but `cancel`."""
    if select.select([sys.stdin], [], [], 0)[0]:
        raise Stop(dropped=sys.stdin.buffer.readline().strip() != b"cancel")


def watch(silence_s):
    """From now on standard input carries `alive`, `go`, `cancel`, or its end.

    A network that dies tells neither end, and sshd itself may hold on for hours; so `silence_s`
    without a word count as the end.
    """
    STATE.silence_s = silence_s
    STATE.heard = time.monotonic()

    def loop():
        while True:
            try:
                line = sys.stdin.buffer.readline()
            except (OSError, ValueError):
                line = b""
            if line.strip() == b"cancel":
                STATE.cancelled.set()
                return
            if not line:
                STATE.dropped.set()
                return
            if line.strip() == b"go":
                STATE.approved.set()
            STATE.heard = time.monotonic()

    thread = threading.Thread(target=loop)
    thread.daemon = True
    thread.start()
