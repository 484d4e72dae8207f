"""Measuring with onnxruntime where there is no trtexec. numpy and onnxruntime are imported here
only, so that a Jetson without them can still run trtexec.

The method is that of `hgkd_edge.bench.local`: load and first run, warm-up until stable, rounds in
turn.
"""

import gc
import json
import os
import time

from .life import send


def measure_all(cases, folder, names_of, method, telemetry):
    """Raw times of every case, interleaved. Returns one dictionary per case, in order."""
    opened = []
    for case in cases:
        opened.append(open_case(case, os.path.join(folder, names_of(case)["onnx"])))
        send("loaded", case=case["id"])
    results = []
    for case, one in zip(cases, opened):
        results.append(warm_up(one, method))
        results[-1].update(
            load_ms=one["load_ms"],
            first_ms=one["first_ms"],
            memory_mb=one["memory_mb"],
            rounds=[],
            windows=[],
        )
        send("warm", case=case["id"])
    gc.collect()
    gc.disable()
    order = [index for turn in method["order"] for index in turn]
    for done, index in enumerate(order):
        time.sleep(method["rest_s"])
        begin = time.monotonic()
        taken = visit(opened[index]["run"], method, len(method["order"]))
        results[index]["rounds"].append(taken)
        results[index]["windows"].append([begin, time.monotonic()])
        send("round", done=done + 1, of=len(order))
    for result in results:
        lines = []
        for begin, finish in result.pop("windows"):
            lines += telemetry.between(begin, finish)
        result["telemetry"] = lines
    return results


def outputs(case, folder, names):
    """What the model computes for each of the case's inputs, in the form of trtexec's JSON.

    In a session of its own: the measured one must be cold for its first inference.
    """
    session = open_session(os.path.join(folder, names["onnx"]), case["threads"])
    names = [output.name for output in session.get_outputs()]
    texts = []
    for inputs in case["check"]:
        values = session.run(names, load_feeds(inputs, folder))
        entries = [
            {
                "name": name,
                "dimensions": "x".join(str(size) for size in array.shape or (1,)),
                "values": array.ravel().tolist(),
            }
            for name, array in zip(names, values)
        ]
        texts.append(json.dumps(entries))
    return texts


def load_feeds(inputs, folder):
    """Input name -> array, from the raw files that came with the job."""
    import numpy

    feeds = {}
    for entry in inputs:
        values = numpy.fromfile(os.path.join(folder, entry["file"]), entry["dtype"])
        feeds[entry["name"]] = values.reshape(entry["shape"])
    return feeds


def open_session(path, threads):
    """A session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def open_case(case, path):
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


def plain(session, feeds):
    """numpy in, numpy out."""
    outputs = [output.name for output in session.get_outputs()]
    return lambda: session.run(outputs, feeds)


def bound(session, feeds):
    """Inputs and outputs bound once."""
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")
    return lambda: session.run_with_iobinding(binding)


def warm_up(one, method):
    """Windows until two in a row keep the median within 3 %."""
    start, runs, calm, previous = time.monotonic(), 0, 0, 0.0
    while True:
        times = window(one["run"], 5, 0.05)
        runs += len(times)
        median = sorted(times)[len(times) // 2]
        calm = calm + 1 if abs(median - previous) <= 0.03 * previous else 0
        previous = median
        seconds = time.monotonic() - start
        stable = calm >= 2 and seconds >= method["warmup_min_s"]
        if stable or seconds >= method["warmup_max_s"]:
            seen = {"runs": runs, "seconds": seconds, "stable": stable}
            return {"warmup": seen}


def visit(run, method, rounds):
    """One interleaved visit: runs to settle, then the measured ones, in ms."""
    for _ in range(method["settle_runs"]):
        run()
    if method["count"]:
        return [timed(run) for _ in range(-(-method["count"] // rounds))]
    return window(run, -(-method["min_runs"] // rounds), method["duration_s"] / float(rounds))


def window(run, least_runs, least_s):
    """Runs until both bounds are met."""
    times = []  # type: list
    spent = 0.0
    while len(times) < least_runs or spent < least_s * 1000:
        times.append(timed(run))
        spent += times[-1]
    return times


def timed(run):
    """Milliseconds of one run."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1000


def resident_mb():
    """Resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1048576.0
