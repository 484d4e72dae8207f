"""Results of a job's steps on the device -> measurements of bench.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hgkd_edge.bench.edge.job import WARMUP_MS, EdgeCase, EdgeJob
from hgkd_edge.bench.edge.link import Finished, Link
from hgkd_edge.bench.edge.messages import stamped
from hgkd_edge.bench.edge.tegrastats import telemetry_of
from hgkd_edge.bench.edge.trtexec import (
    Log,
    Times,
    outputs_of,
    parse_log,
    parse_outputs,
    parse_times,
    settings_warnings,
)
from hgkd_edge.bench.method import Trace
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import Telemetry, Verification, Warmup
from hgkd_edge.bench.session import Measured, measurement_of
from hgkd_edge.bench.verification import judge
from hgkd_edge.parsing import parse_json

__all__ = ["measured_by_onnxruntime", "measured_by_trtexec"]

# Ten per second; a board's power varies from one sample to the next.
_FEW_SAMPLES = 10

Spans = list[tuple[float, float]]  # seconds of the device's clock


def measured_by_trtexec(link: Link, job: EdgeJob, options: BenchOptions) -> list[Measured]:
    """Follow the steps of a job for trtexec.

    Raises:
        WorkFailed: A step failed, or the connection broke.
        WrongOutputs: An engine's outputs differ from its ONNX file's.
        DeviceError: A result that cannot be read.
    """
    builds = []
    for _case in job.cases:
        reused = link.receive("reused").strip() == "yes"
        builds.append((link.finished("engine found" if reused else "building", "trtexec"), reused))
    found = [
        _judged(case, options, [link.finished("verifying", "trtexec").result for _ in case.check])
        for case in job.cases
    ]
    board = _Board.idle(link)
    visits: list[list[Finished]] = [[] for _ in job.cases]
    for done, index in enumerate(job.order):
        visits[index].append(link.finished("measuring", "trtexec", done / len(job.order)))
    board.finish(link)
    return [
        _from_trtexec(case, job, options, board, build, verification, seen)
        for case, build, verification, seen in zip(job.cases, builds, found, visits, strict=True)
    ]


def measured_by_onnxruntime(
    link: Link, job: EdgeJob, options: BenchOptions, version: str
) -> list[Measured]:
    """Follow the steps of a job for the script that is sent along; see `measured_by_trtexec`."""
    program = "the sent script"
    outputs = parse_json(link.finished("verifying", program).result)
    found = [_judged(case, options, calls) for case, calls in zip(job.cases, outputs, strict=True)]
    board = _Board.idle(link)
    results = parse_json(link.finished("measuring", program).result)
    board.finish(link)
    return [
        _from_onnxruntime(case, result, options, board, verification, version)
        for case, result, verification in zip(job.cases, results, found, strict=True)
    ]


def _judged(case: EdgeCase, options: BenchOptions, calls: Sequence[Any]) -> Verification | str:
    """Compare outputs; for each call trtexec's export, as text or plain data."""
    try:
        got = [parse_outputs(one) if isinstance(one, str) else outputs_of(one) for one in calls]
    except ValueError:
        got = []
    return judge(
        case.name,
        case.probe,
        got,
        bound=case.bound,
        where="on the measuring machine",
        few=True,
        unverified=options.unverified,
    )


@dataclass
class _Board:
    """Power and clocks during the work.

    Args:
        source: tegrastats or ina3221; empty where there is neither.
        started: When the board had been idle long enough.
        overcurrent: Over-current events by counter: first since boot, then during the work.
        lines: What the source printed, with the second of each line.
    """

    source: str
    overcurrent: dict[str, int]
    started: float
    lines: list[tuple[float, str]]

    @classmethod
    def idle(cls, link: Link) -> _Board:
        """Let the device continue, first idle."""
        link.request("go")
        source = link.receive("source").strip()
        return cls(source, _counts(link), float(link.receive("started").split()[0]), [])

    def finish(self, link: Link) -> None:
        """Read the source's output."""
        after = _counts(link)
        self.overcurrent = {name: n - self.overcurrent.get(name, 0) for name, n in after.items()}
        self.lines = stamped(link.receive("power"))

    def telemetry(self, spans: Spans, throughput: float) -> Telemetry | None:
        """Telemetry within these spans."""
        if not self.source:
            return None
        return telemetry_of(
            [one for one in self.lines if any(begin <= one[0] <= end for begin, end in spans)],
            source=self.source,
            throughput_ips=throughput,
            idle=[one for one in self.lines if one[0] < self.started],
            overcurrent=self.overcurrent,
        )


def _counts(link: Link) -> dict[str, int]:
    return {
        line.split()[0]: int(line.split()[1]) for line in link.receive("overcurrent").splitlines()
    }


def _measured(
    trace: Trace,
    case: EdgeCase,
    options: BenchOptions,
    found: Verification | str,
    telemetry: Telemetry | None,
    warnings: Sequence[str] = (),
    **fields: Any,
) -> Measured:
    """The record of a case, with the fields common to all devices."""
    notes = list(warnings)
    if telemetry is not None and telemetry.samples < _FEW_SAMPLES:
        notes.append(f"power rests on {telemetry.samples} samples only; a longer --duration")
    one = measurement_of(
        trace,
        found=found,
        where=" on the device",
        case=case.name,
        model=case.model.label,
        precision=case.precision,
        batch=case.batch,
        threads=case.threads,
        copies=options.copies,
        inputs=case.inputs,
        telemetry=telemetry,
        warnings=notes,
        **fields,
    )
    return one, trace.rounds


def _from_trtexec(
    case: EdgeCase,
    job: EdgeJob,
    options: BenchOptions,
    board: _Board,
    built: tuple[Finished, bool],
    found: Verification | str,
    visits: Sequence[Finished],
) -> Measured:
    assert job.trtexec is not None
    (build, reused), building = built, _log_of(built[0])
    logs = [_log_of(visit) for visit in visits]
    times = [
        parse_times(visit.result, copies=options.copies, warmup_ms=WARMUP_MS) for visit in visits
    ]
    rounds = [one.ms for one in times]
    seconds = sum(one.ms.size / one.queries_per_s for one in times)
    throughput = case.batch * sum(one.ms.size for one in times) / seconds
    warmup = Warmup(
        runs=sum(log.warmup_runs or 0 for log in logs),
        seconds=len(visits) * WARMUP_MS / 1000,
        stable=_settled(rounds),
    )
    build_s = building.build_s or build.log[-1][0] - build.log[0][0]
    one, _rounds = _measured(
        Trace(warmup=warmup, rounds=rounds),
        case,
        options,
        found,
        board.telemetry([span for visit in visits for span in _inferring(visit)], throughput),
        _warnings(logs, times, options),
        first_ms=None,
        runner="trtexec",
        runner_version=job.trtexec.name,
        backend="TensorRT",
        load_ms=None if logs[0].load_s is None else logs[0].load_s * 1000,
        build_ms=build_s * 1000,
        host_memory_mb=max(visit.peak_kb for visit in visits) / 1024 or None,
        engine_mb=int(build.result) / 2**20,
        commands=[case.build, case.measure],
        details={"settings": logs[0].settings, "engine_reused": reused},
    )
    return one.model_copy(update={"throughput_ips": throughput, "measured_s": seconds}), rounds


def _from_onnxruntime(
    case: EdgeCase,
    result: dict[str, Any],
    options: BenchOptions,
    board: _Board,
    found: Verification | str,
    version: str,
) -> Measured:
    rounds = [np.array(part, dtype=np.float64) for part in result["rounds"]]
    if not rounds or not all(part.size and (part > 0).all() for part in rounds):
        raise ValueError("times of inferences that are not above zero")
    if not all(np.isfinite(part).all() for part in rounds):
        raise ValueError("times of inferences that are not finite")
    trace = Trace(warmup=Warmup(**result["warmup"]), rounds=rounds)
    throughput = case.batch * trace.times_ms.size / (trace.times_ms.sum() / 1000)
    return _measured(
        trace,
        case,
        options,
        found,
        board.telemetry([(begin, end) for begin, end in result["spans"]], throughput),
        first_ms=result["first_ms"],
        runner="ort-cpu",
        runner_version=version,
        backend="CPUExecutionProvider",
        load_ms=result["load_ms"],
        build_ms=None,
        host_memory_mb=result["memory_mb"],
        engine_mb=None,
    )


def _log_of(finished: Finished) -> Log:
    return parse_log([line for _second, line in finished.log])


def _inferring(visit: Finished) -> Spans:
    """When trtexec measured; empty without the line that marks it: loading is not measuring."""
    begin, end = visit.second_of("Starting inference"), visit.second_of("Timing trace has")
    if begin is None:
        return []
    return [(begin + WARMUP_MS / 1000, visit.log[-1][0] if end is None else end)]


def _warnings(logs: Sequence[Log], times: Sequence[Times], options: BenchOptions) -> list[str]:
    """Effective settings, trtexec's own warnings, and a trace that disagrees with its summary."""
    notes = [note for log in logs for note in settings_warnings(log, copies=options.copies)]
    figure = "Latency" if options.copies == "in" else "GPU Compute Time"
    for log, one in zip(logs, times, strict=True):
        reported = log.medians_ms.get(figure)
        if reported and abs(float(np.median(one.ms)) - reported) > 0.05 * reported:
            notes.append(
                f"the exported times' median, {np.median(one.ms):.3f} ms, is not the "
                f"{reported:.3f} ms that trtexec printed"
            )
    return list(dict.fromkeys(notes))


def _settled(rounds: Sequence[np.ndarray]) -> bool:
    """Whether each visit's last fifth is within 5 % of its first: the warm-up was enough."""
    for part in rounds:
        fifth = max(1, part.size // 5)
        first, last = np.median(part[:fifth]), np.median(part[-fifth:])
        if abs(last - first) > 0.05 * first:
            return False
    return True
