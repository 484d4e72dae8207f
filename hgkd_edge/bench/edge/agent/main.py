"""The agent's life: say hello with the facts, take a job, do it, report, leave nothing behind.

Requests come on standard input, one JSON object a line; an empty line says that the other end is
still there. Events go out (see `life.send`). What ends the connection ends everything here.

    -> hello {facts}
    <- open {id, resume, silence_s, patience_s, tool, trtexec, files, cases, plan, ...}
    -> need {names}                          only what is not there yet
    <- file {name, size}, then its raw bytes; for each of them
    <- build
    -> build / working / outputs {case, texts}; done
    <- measure                               the outputs were found right
    -> round / working / result {case, ...}; done
    <- bye                                   at any time: remove everything
    -> failed {reason}                       at any time; everything is removed
"""

import fcntl
import json
import os
import shutil
import signal
import sys
import time
from queue import Queue
from typing import Any

from . import facts, ort, trt
from .life import Scratch, in_background, leave, leave_when_silent, pack, send
from .telemetry import Telemetry

# A folder that a broken-off session left and nobody came back for.
_FORGOTTEN_S = 7 * 24 * 3600.0


class Requests(object):
    """Standard input, read in a thread of its own: requests go to a queue, files to the folder."""

    def __init__(self) -> None:
        self.queue: Queue = Queue()
        self.heard = time.monotonic()
        in_background(self._read)

    def _read(self) -> None:
        stdin = sys.stdin.buffer
        try:
            for line in iter(stdin.readline, b""):
                self.heard = time.monotonic()
                request = json.loads(line.decode("utf-8")) if line.strip() else {"op": ""}
                if request["op"] == "bye":
                    leave(keep=False)
                if request["op"] == "file":
                    self._store(stdin, **request)
                if request["op"]:
                    self.queue.put(request)
        except (EOFError, OSError, ValueError):
            pass
        leave(keep=True)

    def _store(self, stdin: Any, op: str, name: str, size: int) -> None:
        with open(os.path.join(Scratch.folder, name + ".part"), "wb") as out:
            while size:
                chunk = stdin.read1(min(size, 1 << 16))
                if not chunk:
                    raise EOFError
                out.write(chunk)
                size -= len(chunk)
                self.heard = time.monotonic()


def main() -> None:
    """Serve one connection."""
    signal.signal(signal.SIGHUP, lambda *_: leave(keep=True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C comes as `bye`, not as a signal
    signal.signal(signal.SIGTERM, lambda *_: leave(keep=False))
    requests = Requests()
    send("hello", facts=facts.gather())
    try:
        job = requests.queue.get()
        leave_when_silent(lambda: requests.heard, job["silence_s"])
        wanted = open_job(job)
        send("need", names=[entry["name"] for entry in wanted])
        for entry in wanted:
            requests.queue.get()
            accept(entry)
        requests.queue.get()
        built = build(job)
        send("done")
        requests.queue.get()
        measure(job, built)
        send("done")
        requests.queue.get()  # nothing comes but `bye`
    except Exception as error:
        send("failed", reason=str(error) or type(error).__name__)
        leave(keep=False)


def open_job(job: dict) -> list:
    """Take the folder of a job. Returns the files that it lacks."""
    if not job["id"] or any(letter not in "0123456789abcdef" for letter in job["id"]):
        raise RuntimeError("the job id is not a hex digest")
    home = os.path.join(jobs_folder(), job["id"])
    forget_old()
    lock(home + ".lock", patience_s=job["patience_s"])
    if not job["resume"]:
        shutil.rmtree(home, ignore_errors=True)
    os.makedirs(home, mode=0o700, exist_ok=True)
    Scratch.folder, Scratch.lock = home, home + ".lock"
    wanted = []
    for entry in job["files"]:
        path = os.path.join(home, entry["name"])
        if os.path.basename(entry["name"]) != entry["name"]:
            raise RuntimeError("file names must not contain folders")
        if not os.path.exists(path) or trt.digest(path) != entry["sha256"]:
            wanted.append(entry)
    total = sum(entry["size"] for entry in wanted)
    free = shutil.disk_usage(home).free
    if free < 4 * total:
        raise RuntimeError(
            "%d MB free on the device, about %d MB needed" % (free >> 20, (4 * total) >> 20)
        )
    return wanted


def lock(path: str, patience_s: float) -> None:
    """Hold the lock of a job to the end of this process; waits for a session that is about to end.

    Raises:
        RuntimeError: Somebody with a live connection is measuring the same job.
    """
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    begin = time.monotonic()
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_ino == os.stat(path).st_ino:
                return
        except OSError:  # held, or removed since it was opened
            pass
        os.close(handle)
        if time.monotonic() - begin > patience_s:
            raise RuntimeError("another session is measuring this model on this device")
        send("waiting", reason="an earlier session is still at work on this device")
        time.sleep(0.5)


def accept(entry: dict) -> None:
    """Put a file that has arrived in its place."""
    path = os.path.join(Scratch.folder, entry["name"])
    if trt.digest(path + ".part") != entry["sha256"]:
        raise RuntimeError("%s arrived damaged" % entry["name"])
    os.rename(path + ".part", path)


def names_of(case: dict) -> dict:
    """The file names of a case; ours, never the user's."""
    return {
        "onnx": "model-%d.onnx" % case["model"],
        "engine": "engine-%d.plan" % case["number"],
        "times": "times-%d.json" % case["number"],
        "outputs": "outputs-%d.json" % case["number"],
        "cache": "timing.cache",
    }


def build(job: dict) -> list:
    """Build every engine, then show what each case computes. Returns what the engines cost."""
    folder, tool, built = Scratch.folder, job["trtexec"], []
    for case in job["cases"] if job["tool"] == "trtexec" else []:
        built.append(trt.build(case, tool, folder, names_of(case)))
    for case in job["cases"]:
        if case["check"] and job["tool"] == "trtexec":
            texts = trt.outputs(case, tool, folder, names_of(case))
        elif case["check"]:
            texts = ort.outputs(case, folder, names_of(case))
        else:
            continue
        send("outputs", case=case["id"], texts=[pack(text) for text in texts])
    return built


def measure(job: dict, built: list) -> None:
    """Visit the cases in turn with the board watched, and send their results."""
    cases, folder = job["cases"], Scratch.folder
    telemetry = Telemetry()
    telemetry.start()
    begin = time.monotonic()
    if telemetry.source:
        time.sleep(job["idle_s"])
    idle = telemetry.between(begin, time.monotonic())
    before = facts.overcurrent_events()
    if job["tool"] == "trtexec":
        visits: list = [[] for _ in cases]
        for done, index in enumerate(job["order"], 1):
            case = cases[index]
            seen = trt.measure(case, job["trtexec"], folder, names_of(case), telemetry)
            visits[index].append(seen)
            send("round", done=done, of=len(job["order"]))
        results = [{"build": cost, "visits": seen} for cost, seen in zip(built, visits)]
    else:
        results = ort.measure_all(cases, folder, names_of, job["plan"], telemetry)
    after = facts.overcurrent_events()
    telemetry.stop()
    board = {
        "source": telemetry.source,
        "idle": idle,
        "overcurrent": {name: count - before.get(name, 0) for name, count in after.items()},
        "temperatures": facts.temperatures(),
    }
    for case, result in zip(cases, results):
        send("result", case=case["id"], board=board, **result)


def jobs_folder() -> str:
    """Where scratch folders live."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "hgkd-edge", "jobs")


def forget_old() -> None:
    """Remove folders untouched for a week."""
    base = jobs_folder()
    for name in os.listdir(base) if os.path.isdir(base) else []:
        path = os.path.join(base, name)
        try:
            if time.time() - os.path.getmtime(path) > _FORGOTTEN_S:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue
