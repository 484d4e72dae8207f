"""Models and options -> a job for the agent. What is measured by trtexec where there is one, else
by onnxruntime on the device's CPU."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from exporters.files import file_sha256
from exporters.network_files import renamed_files
from hgkd_edge.bench.edge.trtexec import (
    Trtexec,
    build_arguments,
    inputs_argument,
    loadable_names,
    measure_arguments,
    output_arguments,
)
from hgkd_edge.bench.edge.verification import fetchable_probe
from hgkd_edge.bench.method import Plan, visiting_order
from hgkd_edge.bench.models import ModelFile
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import InputInfo
from hgkd_edge.bench.verification import Probe, loosest
from hgkd_edge.errors import DeviceError, RunError

__all__ = ["EdgeCase", "EdgeJob", "make_job"]

# trtexec's own 200 ms is over before a Jetson's clocks have risen.
WARMUP_MS = 2000
IDLE_S = 2.0
# Without a word for this long, either end takes the network for dead.
SILENCE_S = 60.0
# How long a session waits for another one on the same job: a dead one ends within SILENCE_S.
PATIENCE_S = 70.0


@dataclass(frozen=True)
class EdgeCase:
    """One case as the host sees it; `wire` is what the agent gets. `unchecked` says why its outputs
    cannot be verified, and is empty when they can."""

    id: str
    name: str
    model: ModelFile
    precision: str
    batch: int
    threads: int | None
    inputs: list[InputInfo]
    probe: Probe = field(repr=False)
    unchecked: str
    wire: dict[str, Any] = field(repr=False)

    @property
    def bound(self) -> str:
        """Row of exporters' table of tolerances: TensorRT may compute fp32 in TF32."""
        return loosest(self.precision, "tf32" if "build" in self.wire else self.precision)


@dataclass(frozen=True)
class EdgeJob:
    """A job, the bytes it may need, and the cases in order."""

    tool: str
    trtexec: Trtexec | None
    cases: list[EdgeCase]
    message: dict[str, Any] = field(repr=False)
    payload: dict[str, bytes | Path] = field(repr=False)


def make_job(
    models: Sequence[ModelFile], options: BenchOptions, facts: dict[str, Any], *, where: str
) -> EdgeJob:
    """Plan the measurement on a device whose facts are known.

    Args:
        models: Files to measure.
        options: Batches, precisions, copies, duration, ...
        facts: What the agent said of the device.
        where: Name of the device for messages.

    Raises:
        DeviceError: The device has neither trtexec nor onnxruntime, or cannot do what was asked.
        RunError: No model of the wanted precision.
    """
    tool = _trtexec_of(facts)
    if tool is None and not _has_onnxruntime(facts):
        raise DeviceError(
            f"{where} has neither trtexec nor a Python with numpy and onnxruntime",
            hint="on a Jetson: sudo apt install libnvinfer-bin; elsewhere: pip install onnxruntime",
        )
    wanted = _wanted(models, options, may_build=tool is not None)
    files: dict[str, bytes | Path] = {}
    cases: list[EdgeCase] = []
    probes: dict[tuple[int, int], Probe] = {}
    for model, precision in wanted:
        index = models.index(model)
        for batch in options.batches:
            if (index, batch) not in probes:
                probes[index, batch] = fetchable_probe(model, batch=batch, images=options.images)
                files |= renamed_files(model.path, f"model-{index}.onnx")
            probe = probes[index, batch]
            files |= {
                entry["file"]: feeds[entry["name"]].tobytes()
                for feeds, call in zip(probe.feeds, _calls(probe, index, batch), strict=True)
                for entry in call
            }
            for threads in (None,) if tool else options.threads:
                cases.append(
                    _case(len(cases), index, model, precision, batch, threads, probe, options, tool)
                )
    message = _message(cases, files, options, facts, tool)
    return EdgeJob(
        "trtexec" if tool else "onnxruntime", tool, cases, message=message, payload=files
    )


def _trtexec_of(facts: dict[str, Any]) -> Trtexec | None:
    if not facts.get("trtexec"):
        return None
    return Trtexec.from_help(facts.get("trtexec_help") or "")


def _has_onnxruntime(facts: dict[str, Any]) -> bool:
    said = (facts.get("onnxruntime") or "").strip()
    return bool(said) and said[0].isdigit() and "Error" not in said


def _wanted(
    models: Sequence[ModelFile], options: BenchOptions, *, may_build: bool
) -> list[tuple[ModelFile, str]]:
    """(model, precision to build) pairs; an FP32 file stands in for FP16 where there is none."""
    if not options.precisions:
        return [(model, model.precision) for model in models]
    pairs: list[tuple[ModelFile, str]] = []
    missing = []
    for precision in options.precisions:
        exact = [model for model in models if model.precision == precision]
        stand_in = [model for model in models if model.precision == "fp32"]
        if exact:
            pairs += [(model, precision) for model in exact]
        elif may_build and precision == "fp16" and stand_in:
            pairs += [(model, precision) for model in stand_in]
        else:
            missing.append(precision)
    if missing:
        found = ", ".join(f"{model.label} ({model.precision})" for model in models)
        raise RunError(
            f"no model of precision {' or '.join(missing)}; found {found}",
            hint=f"hgkd-edge export --onnx --precision {missing[0]}",
        )
    return pairs


def _calls(probe: Probe, index: int, batch: int) -> list[list[dict[str, Any]]]:
    """Of every call, every input: what it is, and our own name for the file of its values."""
    return [
        [
            {
                "name": record.name,
                "shape": record.shape,
                "dtype": record.dtype,
                "file": f"input-{index}-{batch}-{call}-{place}.bin",
            }
            for place, record in enumerate(probe.inputs)
        ]
        for call in range(len(probe.feeds))
    ]


def _case(
    number: int,
    index: int,
    model: ModelFile,
    precision: str,
    batch: int,
    threads: int | None,
    probe: Probe,
    options: BenchOptions,
    tool: Trtexec | None,
) -> EdgeCase:
    calls = _calls(probe, index, batch)
    unchecked, inputs = probe.reason, probe.inputs
    wire: dict[str, Any] = {
        "id": f"case-{number}",
        "number": number,
        "model": index,
        "inputs": calls[0],
        "copies": options.copies,
        "threads": threads,
        "warmup_ms": WARMUP_MS,
        "check": [] if unchecked else calls,
    }
    if tool is not None:
        if not loadable_names(record.name for record in inputs):
            unchecked = unchecked or "trtexec cannot be given values for inputs of these names"
            # It draws random values of its own.
            inputs = [
                one.model_copy(update={"seed": None, "source": "synthetic"}) for one in inputs
            ]
        wire |= _trtexec_arguments(
            tool, model, precision, probe, calls, options, check=not unchecked
        )
    name = f"{model.label} {'trtexec' if tool else 'ort'} {precision} b{batch}"
    name += f" t{threads}" if threads else ""
    return EdgeCase(
        wire["id"], name, model, precision, batch, threads, inputs, probe, unchecked, wire
    )


def _trtexec_arguments(
    tool: Trtexec,
    model: ModelFile,
    precision: str,
    probe: Probe,
    calls: Sequence[Sequence[dict[str, Any]]],
    options: BenchOptions,
    *,
    check: bool,
) -> dict[str, Any]:
    """What trtexec is told to build, to verify and to measure one case."""
    shapes = {record.name: record.shape for record in probe.inputs}
    dynamic = any(
        not isinstance(axis, int) or axis < 1 for one in model.info.inputs for axis in one.shape
    )
    values = [
        inputs_argument({entry["name"]: entry["file"] for entry in call})
        if loadable_names(shapes)
        else []
        for call in calls
    ]
    rounds = _rounds(options, tool)
    return {
        "build": build_arguments(
            tool,
            shapes=shapes,
            dynamic=dynamic,
            model_precision=model.precision,
            precision=precision,
        ),
        "check": [output_arguments(tool, shapes=shapes, dynamic=dynamic) + one for one in values]
        if check
        else [],
        "measure": measure_arguments(
            tool,
            shapes=shapes,
            dynamic=dynamic,
            copies=options.copies,
            warmup_ms=WARMUP_MS,
            duration_s=options.duration_s / rounds,
            count=-(-options.count // rounds) if options.count else None,
        )
        + values[0],
    }


def _rounds(options: BenchOptions, tool: Trtexec | None) -> int:
    """trtexec measures whole seconds, so there are no more rounds than seconds."""
    if tool is None or options.count:
        return options.rounds
    return max(1, min(options.rounds, int(options.duration_s)))


def _message(
    cases: Sequence[EdgeCase],
    files: dict[str, bytes | Path],
    options: BenchOptions,
    facts: dict[str, Any],
    tool: Trtexec | None,
) -> dict[str, Any]:
    plan = Plan(duration_s=options.duration_s, count=options.count, rounds=_rounds(options, tool))
    entries = [_file_entry(name, item) for name, item in sorted(files.items())]
    # The folder's name on the device: the same work by the same builder finds its engines again.
    identity = [
        [(entry["name"], entry["sha256"]) for entry in entries],
        [case.wire.get("build") for case in cases],
        tool.name if tool else None,
    ]
    return {
        "id": hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32],
        "resume": options.resume,
        "silence_s": SILENCE_S,
        "patience_s": PATIENCE_S,
        "tool": "trtexec" if tool else "onnxruntime",
        "trtexec": facts.get("trtexec"),
        "files": entries,
        "cases": [case.wire for case in cases],
        "plan": asdict(plan),
        "order": [index for turn in visiting_order(len(cases), plan.rounds) for index in turn],
        "idle_s": IDLE_S,
    }


def _file_entry(name: str, item: bytes | Path) -> dict[str, Any]:
    if isinstance(item, bytes):
        return {"name": name, "size": len(item), "sha256": hashlib.sha256(item).hexdigest()}
    return {"name": name, "size": item.stat().st_size, "sha256": file_sha256(item)}
