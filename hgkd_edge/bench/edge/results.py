"""Raw results of the agent -> measurements of bench.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hgkd_edge.bench.edge.facts import Board
from hgkd_edge.bench.edge.job import WARMUP_MS, EdgeCase, EdgeJob
from hgkd_edge.bench.edge.limits import MOST_TIMES_TEXT
from hgkd_edge.bench.edge.stream import unpack
from hgkd_edge.bench.edge.tegrastats import telemetry_of
from hgkd_edge.bench.edge.trtexec import Log, Times, parse_log, parse_times, settings_warnings
from hgkd_edge.bench.method import Trace
from hgkd_edge.bench.models import ModelFile
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import Session, Telemetry, Verification, Warmup
from hgkd_edge.bench.session import Measured, measurement_of, session_of

__all__ = ["session_from"]


def session_from(
    target: str,
    job: EdgeJob,
    results: Sequence[dict[str, Any]],
    *,
    verifications: Mapping[str, Verification],
    models: Sequence[ModelFile],
    options: BenchOptions,
    facts: dict[str, Any],
    board: Board,
) -> Session:
    """Assemble a session.

    Args:
        target: Name of the device in bench.json.
        job: What was asked.
        results: One per case, in order.
        verifications: Case id -> how its outputs compared.
        models: All models of the call.
        options: The call's options.
        facts: Raw facts of the device.
        board: The same, understood.

    Raises:
        DeviceError: A result that cannot be read.
    """
    read = _from_trtexec if job.trtexec else _from_onnxruntime
    environment, warnings = board.environment(facts), board.warnings()
    if job.trtexec:
        environment["trtexec"] = job.trtexec.name
        if any(options.threads):
            warnings.append("--threads means nothing to trtexec")
    return session_of(
        target,
        options,
        [
            read(case, job, result, options, facts, verifications.get(case.id, case.unchecked))
            for case, result in zip(job.cases, results, strict=True)
        ],
        models=models,
        environment=environment,
        warnings=warnings,
    )


# At ten a second; a board's power swings from one to the next.
_FEW_SAMPLES = 10


def _measured(
    trace: Trace,
    case: EdgeCase,
    options: BenchOptions,
    found: Verification | str,
    telemetry: Telemetry | None,
    warnings: Sequence[str] = (),
    **fields: Any,
) -> Measured:
    """The record of a case, with what is true of every device."""
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
    result: dict[str, Any],
    options: BenchOptions,
    facts: dict[str, Any],
    found: Verification | str,
) -> Measured:
    assert job.trtexec is not None
    build, visits = result["build"], result["visits"]
    logs = [parse_log(visit["log"]) for visit in visits]
    times = [
        parse_times(_times_text(visit), copies=options.copies, warmup_ms=WARMUP_MS)
        for visit in visits
    ]
    rounds = [one.ms for one in times]
    queries = sum(one.ms.size for one in times)
    seconds = sum(one.ms.size / one.queries_per_s for one in times)
    throughput = case.batch * queries / seconds
    warmup = Warmup(
        runs=sum(log.warmup_runs or 0 for log in logs),
        seconds=len(visits) * WARMUP_MS / 1000,
        stable=_settled(rounds),
    )
    built = parse_log(build["log"])
    one, _rounds = _measured(
        Trace(warmup=warmup, rounds=rounds),
        case,
        options,
        found,
        _telemetry(
            [line for visit in visits for line in visit["telemetry"]], result["board"], throughput
        ),
        _warnings(logs, times, options),
        first_ms=None,
        runner="trtexec",
        runner_version=job.trtexec.name,
        backend="TensorRT",
        load_ms=_in_ms(logs[0].load_s),
        build_ms=_in_ms(built.build_s or build["seconds"]),
        host_memory_mb=max(visit["peak_kb"] for visit in visits) / 1024 or None,
        engine_mb=build["bytes"] / 2**20,
        commands=[build["argv"], visits[0]["argv"]],
        details={"settings": logs[0].settings, "engine_reused": build.get("reused", False)},
    )
    return one.model_copy(update={"throughput_ips": throughput, "measured_s": seconds}), rounds


def _times_text(visit: dict[str, Any]) -> str | None:
    packed = visit["times"]
    return None if packed is None else unpack(packed, most=MOST_TIMES_TEXT)


def _from_onnxruntime(
    case: EdgeCase,
    job: EdgeJob,
    result: dict[str, Any],
    options: BenchOptions,
    facts: dict[str, Any],
    found: Verification | str,
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
        _telemetry(result["telemetry"], result["board"], throughput),
        first_ms=result["first_ms"],
        runner="ort-cpu",
        runner_version=(facts.get("onnxruntime") or "").strip(),
        backend="CPUExecutionProvider",
        load_ms=result["load_ms"],
        build_ms=None,
        host_memory_mb=result["memory_mb"],
        engine_mb=None,
    )


def _telemetry(lines: list[Any], board: dict[str, Any], throughput: float) -> Telemetry | None:
    if not board["source"]:
        return None
    return telemetry_of(
        [(stamp, line) for stamp, line in lines],
        source=board["source"],
        throughput_ips=throughput,
        idle=[(stamp, line) for stamp, line in board["idle"]],
        overcurrent=board["overcurrent"],
    )


def _warnings(logs: Sequence[Log], times: Sequence[Times], options: BenchOptions) -> list[str]:
    """Effective settings, trtexec's own warnings, and a trace that disagrees with its summary."""
    notes = [note for log in logs for note in settings_warnings(log, copies=options.copies)]
    figure = "Latency" if options.copies == "in" else "GPU Compute Time"
    for log, one in zip(logs, times, strict=True):
        said = log.medians_ms.get(figure)
        if said and abs(float(np.median(one.ms)) - said) > 0.05 * said:
            notes.append(
                f"the exported times' median, {np.median(one.ms):.3f} ms, is not the {said:.3f} ms "
                "that trtexec printed"
            )
    return list(dict.fromkeys(notes))


def _settled(rounds: Sequence[np.ndarray]) -> bool:
    """Whether each visit's last fifth is within 5 % of its first: the warm-up was long enough."""
    for part in rounds:
        fifth = max(1, part.size // 5)
        first, last = np.median(part[:fifth]), np.median(part[-fifth:])
        if abs(last - first) > 0.05 * first:
            return False
    return True


def _in_ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
