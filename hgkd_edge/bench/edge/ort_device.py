"""Runs on a device without trtexec, on Python 3.8 or later with numpy and onnxruntime.

`ort_device.py verify|measure RESULT.json`, in a folder with `job.json`, the models, the inputs, and
the modules of this package that it imports. Timing uses the same code as on the machine that sent
it.
"""

# ruff: noqa: B905
from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from hgkd_edge.bench.timing import REST_S, Plan, measure, timed, visiting_order


def main(what: str, result: str) -> None:
    """Run one of the two steps of a job."""
    job = json.loads(Path("job.json").read_text(encoding="utf-8"))
    content = verify(job["cases"]) if what == "verify" else measure_all(job["cases"], job["plan"])
    Path(result).write_text(json.dumps(content), encoding="utf-8")


def verify(cases: list[dict[str, Any]]) -> list[list[list[dict[str, Any]]]]:
    """The outputs of each call to check of each case, in the layout of trtexec's JSON."""
    return [[outputs(case, inputs) for inputs in case["check"]] for case in cases]


def outputs(case: dict[str, Any], inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A model's outputs, computed in a separate session: a measured session must start cold."""
    session = open_session(case)
    names = [output.name for output in session.get_outputs()]
    return [
        {
            "name": name,
            "dimensions": "x".join(map(str, array.shape or (1,))),
            "values": array.ravel().tolist(),
        }
        for name, array in zip(names, session.run(names, load_feeds(inputs)))
    ]


def measure_all(cases: list[dict[str, Any]], plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Raw times of every case, interleaved, and the start and end of each visit."""
    opened = [open_case(case) for case in cases]
    turns = visiting_order(len(cases), plan["rounds"])
    order = iter([index for turn in turns for index in turn])
    spans: list[list[list[float]]] = [[] for _ in cases]
    last = [0.0]

    def after_visit(what: str, _part: float) -> None:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)  # the clock of /proc/uptime
        if what == "measure":
            spans[next(order)].append([last[0] + REST_S, now])
        last[0] = now

    traces = measure([one.pop("run") for one in opened], Plan(**plan), progress=after_visit)
    return [
        {
            "warmup": dict(trace.warmup),
            "rounds": [part.tolist() for part in trace.rounds],
            "spans": seen,
            **one,
        }
        for trace, seen, one in zip(traces, spans, opened)
    ]


def open_case(case: dict[str, Any]) -> dict[str, Any]:
    """`run`, which runs a case once, the cost of loading it, and its first run."""
    before, start = resident_mb(), time.monotonic()
    session = open_session(case)
    load_ms = (time.monotonic() - start) * 1000
    feeds = load_feeds(case["inputs"])
    names = [output.name for output in session.get_outputs()]
    if case["copies"] == "in":

        def run() -> object:
            return session.run(names, feeds)

    else:
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name in names:
            binding.bind_output(name, "cpu")

        def run() -> object:
            return session.run_with_iobinding(binding)

    first_ms = timed(run)
    memory_mb = max(0.0, resident_mb() - before)
    return {"run": run, "load_ms": load_ms, "first_ms": first_ms, "memory_mb": memory_mb}


def open_session(case: dict[str, Any], exact: bool = True) -> Any:
    """A session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as well
    options.intra_op_num_threads = case["threads"] or allowed_threads()
    # x86 CPUs without VNNI would add INT8 products in 16 bits, which overflow. Others ignore it.
    options.add_session_config_entry("session.x64quantprecision", str(int(exact)))
    model, providers = case["model"], ["CPUExecutionProvider"]
    try:
        return onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception:  # also without VNNI, where layers share weights
        if not exact:
            raise
    return open_session(case, exact=False)


def allowed_threads() -> int:
    """Cores of a process that may not use all (`taskset`), else 0: ONNX Runtime's own count."""
    if not hasattr(os, "sched_getaffinity"):
        return 0
    allowed = len(os.sched_getaffinity(0))
    return allowed if allowed < (os.cpu_count() or 1) else 0


def load_feeds(inputs: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Input name -> array, from the raw files that came with the job."""
    return {
        entry["name"]: np.fromfile(entry["file"], entry["dtype"]).reshape(entry["shape"])
        for entry in inputs
    }


def resident_mb() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main(*sys.argv[1:])
