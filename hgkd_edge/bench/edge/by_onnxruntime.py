"""Measure with the device's own onnxruntime, by a script that is sent with its imports."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hgkd_edge.bench import method
from hgkd_edge.bench.edge import ort_device
from hgkd_edge.bench.edge.job import EdgeCase, Job, Power, one_a_line
from hgkd_edge.bench.edge.link import Files, Link
from hgkd_edge.bench.method import Plan, Trace
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import Measurement, Verification, Warmup
from hgkd_edge.parsing import parse_json

__all__ = ["OnnxRuntimeJob"]


class OnnxRuntimeJob(Job):
    """Verify all, then measure all, each in one process; `version` is that of onnxruntime."""

    computes = "fp32"

    def __init__(
        self, cases: list[EdgeCase], files: Files, options: BenchOptions, version: str
    ) -> None:
        super().__init__(cases, files, options)
        self._version = version
        plan = Plan(duration_s=options.duration_s, count=options.count, rounds=options.rounds)
        wire = [
            {
                "model": case.file,
                "inputs": case.calls[0],
                "copies": options.copies,
                "threads": case.threads,
                "check": case.calls if case.probe.wanted else [],
            }
            for case in cases
        ]
        self.files |= {
            "ort_device.py": Path(ort_device.__file__),
            "hgkd_edge/__init__.py": b"",
            "hgkd_edge/bench/__init__.py": b"",
            "hgkd_edge/bench/method.py": Path(method.__file__),
            "hgkd_edge/bench/records.py": b"Warmup = dict\n",
            "job.json": json.dumps({"cases": wire, "plan": asdict(plan)}).encode(),
            "verify.args": one_a_line(["python3", "ort_device.py", "verify", "outputs.json"]),
            "measure.args": one_a_line(["python3", "ort_device.py", "measure", "times.json"]),
            "steps": one_a_line(["run verify outputs.json", "idle", "run measure times.json"]),
        }

    def follow(self, link: Link) -> list[Measurement]:
        program = "the sent script"
        outputs = parse_json(link.finished("verifying", program).result)
        found = [self.judged(*pair) for pair in zip(self.cases, outputs, strict=True)]
        link.request(b"go\n")
        results = parse_json(link.finished("measuring", program).result)
        power = Power.parse(link.receive("power")[1])
        return [
            self._record(power, *three) for three in zip(self.cases, results, found, strict=True)
        ]

    def _record(
        self, power: Power, case: EdgeCase, result: dict[str, Any], found: Verification | str
    ) -> Measurement:
        rounds = [np.array(part, dtype=np.float64) for part in result["rounds"]]
        if not rounds or not all(
            one.size and 0 < one.min() <= one.max() < np.inf for one in rounds
        ):
            raise ValueError("times of inferences that are not above zero and finite")
        trace = Trace(warmup=Warmup(**result["warmup"]), rounds=rounds)
        throughput = case.batch * trace.times_ms.size / (trace.times_ms.sum() / 1000)
        return self.record(
            case,
            trace,
            power.telemetry([(begin, end) for begin, end in result["spans"]], throughput),
            found=found,
            first_inference_ms=result["first_ms"],
            runner_version=self._version,
            backend="CPUExecutionProvider",
            load_ms=result["load_ms"],
            build_ms=None,
            host_memory_mb=result["memory_mb"],
            engine_mb=None,
        )
