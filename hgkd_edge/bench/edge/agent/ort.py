"""Measuring with onnxruntime where there is no trtexec. numpy and onnxruntime are imported here
only, so that a Jetson without them can still run trtexec.

How time is taken is decided by `hgkd_edge.bench.method`, whose source is sent along.
"""

import json
import os
import sys
import time
import types
from typing import Any, Callable, Optional  # Python 3.6 too

from .life import send

# Source of `hgkd_edge.bench.method`, put here by the sender.
METHOD = ""


def method() -> Any:
    """The module that takes time on the measuring machine too. Needs Python 3.7 and numpy."""
    records = sys.modules["hgkd_edge.bench.records"] = types.ModuleType("records")
    records.Warmup = dict  # type: ignore[attr-defined]
    module = sys.modules["hgkd_agent.method"] = types.ModuleType("hgkd_agent.method")
    exec(compile(METHOD, "hgkd_agent.method", "exec"), module.__dict__)
    return module


def measure_all(cases: list, folder: str, names_of: Callable, plan: dict, telemetry: Any) -> list:
    """Raw times of every case, interleaved. Returns one dictionary per case, in order."""
    taking = method()
    opened = []
    for case in cases:
        opened.append(open_case(case, os.path.join(folder, names_of(case)["onnx"]), taking.timed))
        send("loaded", case=case["id"])
    turns = taking.visiting_order(len(cases), plan["rounds"])
    order = iter([index for turn in turns for index in turn])
    lines: list = [[] for _ in cases]
    last = [0.0]

    def progress(what: str, part: float) -> None:
        """After each visit: the telemetry of its runs, without the rest before them."""
        now = time.monotonic()
        if what == "measure":
            lines[next(order)] += telemetry.between(last[0] + taking.REST_S, now)
            send("round", done=part, of=1)
        last[0] = now

    traces = taking.measure([one["run"] for one in opened], taking.Plan(**plan), progress=progress)
    return [
        {
            "warmup": trace.warmup,
            "rounds": [part.tolist() for part in trace.rounds],
            "telemetry": seen,
            "load_ms": one["load_ms"],
            "first_ms": one["first_ms"],
            "memory_mb": one["memory_mb"],
        }
        for trace, seen, one in zip(traces, lines, opened)
    ]


def outputs(case: dict, folder: str, names: dict) -> list:
    """What the model computes for each of the case's inputs, in the form of trtexec's JSON.

    In a session of its own: the measured one must be cold for its first inference.
    """
    session = open_session(os.path.join(folder, names["onnx"]), case["threads"])
    wanted = [output.name for output in session.get_outputs()]
    texts = []
    for inputs in case["check"]:
        values = session.run(wanted, load_feeds(inputs, folder))
        entries = [
            {
                "name": name,
                "dimensions": "x".join(str(size) for size in array.shape or (1,)),
                "values": array.ravel().tolist(),
            }
            for name, array in zip(wanted, values)
        ]
        texts.append(json.dumps(entries))
    return texts


def load_feeds(inputs: list, folder: str) -> dict:
    """Input name -> array, from the raw files that came with the job."""
    import numpy

    feeds = {}
    for entry in inputs:
        values = numpy.fromfile(os.path.join(folder, entry["file"]), entry["dtype"])
        feeds[entry["name"]] = values.reshape(entry["shape"])
    return feeds


def open_session(path: str, threads: Optional[int]) -> Any:
    """A session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as well
    options.intra_op_num_threads = threads or 0
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def open_case(case: dict, path: str, timed: Callable) -> dict:
    """A session, a function that runs it once, and its first run."""
    before = resident_mb()
    start = time.monotonic()
    session = open_session(path, case["threads"])
    load_ms = (time.monotonic() - start) * 1000
    feeds = load_feeds(case["inputs"], os.path.dirname(path))
    run = bound(session, feeds) if case["copies"] == "out" else plain(session, feeds)
    first_ms = timed(run)
    memory_mb = max(0.0, resident_mb() - before)
    return {"run": run, "load_ms": load_ms, "first_ms": first_ms, "memory_mb": memory_mb}


def plain(session: Any, feeds: dict) -> Callable:
    """numpy in, numpy out."""
    outputs = [output.name for output in session.get_outputs()]
    return lambda: session.run(outputs, feeds)


def bound(session: Any, feeds: dict) -> Callable:
    """Inputs and outputs bound once."""
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")
    return lambda: session.run_with_iobinding(binding)


def resident_mb() -> float:
    """Resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1048576.0
