"""The agent's life: say hello with the facts, take a job, do it, report, leave nothing behind.

Conversation (one JSON object per line; ours carry a mark, see wire.py):

    -> hello {facts}
    <- job {id, resume, tool, models, cases, method, files}
    -> need {model indices, files}      only what is not there yet
    <- raw bytes of each, in that order
    -> build / working / round / ...    progress
    -> outputs {case, texts}, checked   what each case computes, before anything is timed
    <- go                               the outputs were found right
    -> result {case, ...}               one per case
    -> done | failed {reason} | stopped
    <- alive                            every few seconds, so that a dead network is noticed
    <- cancel                           at any time; or the end of input, which means the line broke
"""

import os
import shutil
import signal
import sys
import time

from . import facts, ort, trt, wire
from .scratch import Scratch
from .telemetry import Telemetry
from .wire import STATE, Stop, receive, receive_bytes, send


def main():
    """Serve one conversation."""
    # A broken line must not kill a build; Ctrl-C comes as `cancel`, not as a signal.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A shutdown of the board: through every `finally`, so that tools end and folders go.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        send("hello", protocol=1, facts=facts.gather())
        job = receive()
        if job.get("id"):
            serve(job)
    except (Stop, ValueError):  # cancelled, or gone, before there was a job
        pass


def serve(job):
    """Do one job; whatever happens, the other end is told and the folder is cleared or kept."""
    scratch = Scratch(job["id"], job["resume"], patience_s=job["silence_s"] + 10)
    keep = False
    try:
        folder = scratch.open()
        STATE.when_dropped = lambda: scratch.mark("dropped")
        STATE.wanted_elsewhere = scratch.asked_to_stop
        fetch(job, folder)
        wire.watch(job["silence_s"])
        if job["tool"] == "trtexec":
            run_trtexec(job, folder)
        else:
            run_onnxruntime(job, folder)
        send("done")
    except Stop as stop:
        keep = stop.dropped and scratch.has_build()
        send("stopped")
    except Exception as error:
        send("failed", reason=str(error) or type(error).__name__)
    finally:
        scratch.release(keep)


def fetch(job, folder):
    """Receive what is not in the folder already, each checked against its sha256."""
    wanted = []
    total = 0
    for entry in job["files"]:
        path = os.path.join(folder, entry["name"])
        if os.path.basename(entry["name"]) != entry["name"]:
            raise RuntimeError("file names must not contain folders")
        if os.path.exists(path) and trt.digest(path) == entry["sha256"]:
            continue
        wanted.append(entry)
        total += entry["size"]
    free = shutil.disk_usage(folder).free
    if free < 4 * total:
        raise RuntimeError(
            "%d MB free on the device, about %d MB needed" % (free >> 20, (4 * total) >> 20)
        )
    send("need", names=[entry["name"] for entry in wanted])
    for entry in wanted:
        path = os.path.join(folder, entry["name"])
        receive_bytes(entry["size"], path + ".part", job["silence_s"])
        if trt.digest(path + ".part") != entry["sha256"]:
            raise RuntimeError("%s arrived damaged" % entry["name"])
        os.rename(path + ".part", path)


def names_of(case):
    """The file names of a case; ours, never the user's."""
    return {
        "onnx": "model-%d.onnx" % case["model"],
        "engine": "engine-%d.plan" % case["number"],
        "times": "times-%d.json" % case["number"],
        "outputs": "outputs-%d.json" % case["number"],
        "cache": "timing.cache",
    }


def run_trtexec(job, folder):
    """Build every engine, then visit the cases in turn."""
    built = []
    for case in job["cases"]:
        STATE.check(building=True)
        built.append(trt.build(case, job["trtexec"], folder, names_of(case)))
    STATE.check()
    show_outputs(job, lambda case: trt.outputs(case, job["trtexec"], folder, names_of(case)))
    visits, board = watched(job, lambda telemetry: take_turns(job, folder, telemetry))
    for case, cost, seen in zip(job["cases"], built, visits):
        send("result", case=case["id"], build=cost, visits=seen, board=board)


def show_outputs(job, outputs_of):
    """Send what each case computes for its inputs, and wait for the verdict."""
    shown = [case for case in job["cases"] if case["check"]]
    for case in shown:
        STATE.check()
        send("outputs", case=case["id"], texts=[wire.pack(text) for text in outputs_of(case)])
    if shown:
        send("checked")
        wire.wait_for_go()


def take_turns(job, folder, telemetry):
    """Visit the cases round by round, in the order given. Returns [case][round]."""
    cases = job["cases"]
    order = [index for turn in job["method"]["order"] for index in turn]
    visits = [[] for _ in cases]  # type: list
    for done, index in enumerate(order):
        visits[index].append(visit(cases[index], job, folder, telemetry))
        send("round", done=done + 1, of=len(order))
    return visits


def visit(case, job, folder, telemetry):
    """One run of trtexec with the telemetry of its measured part only."""
    seen = trt.measure(case, job["trtexec"], folder, names_of(case))
    marks = seen["marks"]
    # Without the mark, loading would be taken for measuring: no power is better than a wrong one.
    begin = marks.get("inference", marks["end"]) + case["warmup_ms"] / 1000.0
    seen["telemetry"] = telemetry.between(begin, marks.get("traced", marks["end"]))
    return seen


def run_onnxruntime(job, folder):
    """Measure with onnxruntime on the CPU."""

    show_outputs(job, lambda case: ort.outputs(case, folder, names_of))

    def work(telemetry):
        return ort.measure_all(job["cases"], folder, names_of, job["method"], telemetry)

    results, board = watched(job, work)
    for case, result in zip(job["cases"], results):
        send("result", case=case["id"], board=board, **result)


def watched(job, work):
    """Run `work(telemetry)` with the board watched. Returns (its result, what the board said)."""
    telemetry = Telemetry()
    telemetry.start()
    try:
        idle_from = time.monotonic()
        while telemetry.source and time.monotonic() - idle_from < job["method"]["idle_s"]:
            STATE.check()
            time.sleep(0.05)
        idle = telemetry.between(idle_from, time.monotonic())
        before = facts.overcurrent_events()
        result = work(telemetry)
        after = facts.overcurrent_events()
    finally:
        telemetry.stop()
    return result, {
        "source": telemetry.source,
        "idle": idle,
        "overcurrent": {name: count - before.get(name, 0) for name, count in after.items()},
        "temperatures": facts.temperatures(),
    }
