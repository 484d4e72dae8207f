"""Running trtexec: build an engine, measure it, watch it. Arguments are lists, never lines."""

import hashlib
import json
import os
import subprocess
import time
from typing import Any

from .life import pack, send, start


def fill(argv: list, names: dict) -> list:
    """Put our own file names for `{onnx}`, `{engine}`, ... in a list of arguments."""
    filled = []
    for argument in argv:
        for name, value in names.items():
            argument = argument.replace("{%s}" % name, value)
        filled.append(argument)
    return filled


def build(case: dict, trtexec: str, folder: str, names: dict) -> dict:
    """Build the case's engine unless a finished one is there. Returns what it cost."""
    engine = os.path.join(folder, names["engine"])
    ticket = engine + ".json"
    argv = [trtexec] + fill(case["build"], names)
    if os.path.exists(ticket):
        with open(ticket) as file:
            known = json.load(file)
        if known["argv"] == argv and os.path.exists(engine) and known["sha256"] == digest(engine):
            send("build", case=case["id"], reused=True)
            return dict(known, reused=True)
    send("build", case=case["id"], reused=False)
    begin = time.monotonic()
    log, _marks, peak_kb = run(argv, folder, what=case["id"])
    done = {
        "argv": argv,
        "seconds": time.monotonic() - begin,
        "log": log,
        "peak_kb": peak_kb,
        "bytes": os.path.getsize(engine),
        "sha256": digest(engine),
    }
    # Written last and renamed: an engine without its ticket is half built and is built again.
    with open(ticket + ".tmp", "w") as file:
        json.dump(done, file)
    os.rename(ticket + ".tmp", ticket)
    return dict(done, reused=False)


def measure(case: dict, trtexec: str, folder: str, names: dict, telemetry: Any) -> dict:
    """One visit: the log, the exported times, the telemetry of the measured part only."""
    argv = [trtexec] + fill(case["measure"], names)
    times = os.path.join(folder, names["times"])
    if os.path.exists(times):
        os.remove(times)
    log, marks, peak_kb = run(argv, folder, what=case["id"])
    packed = None
    if os.path.exists(times):
        with open(times) as file:
            packed = pack(file.read())
    # Without the mark, loading would be taken for measuring: no power is better than a wrong one.
    begin = marks.get("inference", marks["end"]) + case["warmup_ms"] / 1000.0
    lines = telemetry.between(begin, marks.get("traced", marks["end"]))
    return {"argv": argv, "log": log, "times": packed, "telemetry": lines, "peak_kb": peak_kb}


def outputs(case: dict, trtexec: str, folder: str, names: dict) -> list:
    """What the engine computes for each of the case's inputs, as trtexec's JSON."""
    path = os.path.join(folder, names["outputs"])
    texts = []
    for arguments in case["check"]:
        run([trtexec] + fill(arguments, names), folder, what=case["id"])
        with open(path, errors="replace") as file:
            texts.append(file.read())
        os.remove(path)
    return texts


def run(argv: list, folder: str, what: str) -> tuple:
    """Run a tool to its end. Returns (its lines, when the telling ones came, peak memory in kB).

    Raises:
        RuntimeError: It failed; the text ends with its last lines.
    """
    path = os.path.join(folder, "tool.log")
    marks = {"start": time.monotonic()}
    peak_kb = 0
    with open(path, "wb") as out:
        process = start(argv, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
    told = time.monotonic()
    with open(path, "r", errors="replace") as log:
        while process.poll() is None:
            _mark(log, marks)
            peak_kb = max(peak_kb, memory_kb(process.pid))
            if time.monotonic() - told > 2:
                told = time.monotonic()
                send("working", case=what, seconds=told - marks["start"], line=last_line(path))
            time.sleep(0.02)
        _mark(log, marks)
    marks["end"] = time.monotonic()
    with open(path, "r", errors="replace") as log:
        lines = log.read().splitlines()
    if process.returncode != 0:
        errors = [line for line in lines if "[E]" in line or "error" in line.lower()]
        tail = (errors or lines)[-8:]
        code = process.returncode
        how = "ended with code %d" % code if code > 0 else "was ended by signal %d" % -code
        raise RuntimeError("%s %s: %s" % (os.path.basename(argv[0]), how, " | ".join(tail)))
    return lines[:20000], marks, peak_kb


def _mark(log: Any, marks: dict) -> None:
    """Note when trtexec began to infer and when its trace was complete."""
    for line in log.readlines():
        if "Starting inference" in line:
            marks["inference"] = time.monotonic()
        elif "Timing trace has" in line:
            marks["traced"] = time.monotonic()


def last_line(path: str) -> str:
    """The last complete line of a growing log."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 400))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return lines[-1][-160:] if lines else ""


def memory_kb(pid: int) -> int:
    """Peak resident memory of a running process."""
    try:
        with open("/proc/%d/status" % pid) as file:
            for line in file:
                if line.startswith("VmHWM"):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0


def digest(path: str) -> str:
    """sha256 of a file."""
    seen = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            seen.update(chunk)
    return seen.hexdigest()
