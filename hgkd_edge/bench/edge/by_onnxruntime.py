"""Measure with the device's own onnxruntime, by a script that is sent with its imports."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter

from hgkd_edge.bench import timing
from hgkd_edge.bench.edge import ort_device
from hgkd_edge.bench.edge.job import EdgeCase, Job, Power, one_a_line
from hgkd_edge.bench.edge.link import Files, Link
from hgkd_edge.bench.measurement import Execution
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import Measurement, Verification, Warmup
from hgkd_edge.bench.timing import Trace
from hgkd_edge.parsing import parse_json

__all__ = ["OnnxRuntimeJob"]


_Time = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Result(BaseModel):
    """A case, as the script measured it: ms, MiB, and seconds of the device's clock."""

    warmup: Warmup
    rounds: list[Annotated[list[_Time], Field(min_length=1)]] = Field(min_length=1)
    spans: list[tuple[float, float]]
    first_ms: float
    load_ms: float
    memory_mb: float


_RESULTS = TypeAdapter(list[_Result])


class OnnxRuntimeJob(Job):
    """Verify all, then measure all, each in one process; `version` is that of onnxruntime."""

    computes = "fp32"

    def __init__(
        self, cases: list[EdgeCase], files: Files, options: BenchOptions, version: str
    ) -> None:
        super().__init__(cases, files, options)
        self._version = version
        wire = [
            {
                "model": case.file,
                "inputs": [asdict(one) for one in case.calls[0]],
                "copies": options.copies,
                "threads": case.threads,
                "check": [list(map(asdict, call)) for call in case.calls if case.probe.wanted],
            }
            for case in cases
        ]
        self.files |= {
            "ort_device.py": Path(ort_device.__file__),
            "hgkd_edge/__init__.py": b"",
            "hgkd_edge/bench/__init__.py": b"",
            "hgkd_edge/bench/timing.py": Path(timing.__file__),
            "hgkd_edge/bench/records.py": b"Warmup = dict\n",
            "job.json": json.dumps({"cases": wire, "plan": asdict(options.plan())}).encode(),
            "verify.args": one_a_line(["python3", "ort_device.py", "verify", "outputs.json"]),
            "measure.args": one_a_line(["python3", "ort_device.py", "measure", "times.json"]),
            "steps": one_a_line(["run verify outputs.json", "idle", "run measure times.json"]),
        }

    def follow(self, link: Link) -> list[Measurement]:
        program = "the sent script"
        outputs = parse_json(link.finished("verifying", program).result)
        found = [self.judged(*pair) for pair in zip(self.cases, outputs, strict=True)]
        link.request(b"go\n")
        results = _RESULTS.validate_python(parse_json(link.finished("measuring", program).result))
        power = Power.parse(link.receive("power")[1])
        return [
            self._record(power, *three) for three in zip(self.cases, results, found, strict=True)
        ]

    def _record(
        self, power: Power, case: EdgeCase, result: _Result, found: Verification | str
    ) -> Measurement:
        trace = Trace(result.warmup, [np.array(part) for part in result.rounds])
        throughput = case.batch * trace.times_ms.size / (trace.times_ms.sum() / 1000)
        execution = Execution(
            runner_version=self._version,
            backend="CPUExecutionProvider",
            threads=case.threads,
            inputs=case.probe.inputs,
            first_inference_ms=result.first_ms,
            load_ms=result.load_ms,
            build_ms=None,
            host_memory_mb=result.memory_mb,
            engine_mb=None,
            telemetry=power.telemetry(result.spans, throughput),
        )
        return self.record(case, trace, execution, found=found)
