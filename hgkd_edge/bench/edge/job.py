"""Models and options -> a job for the agent. What is measured by trtexec where there is one, else
by onnxruntime on the device's CPU."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hgkd_edge.bench.edge.trtexec import (
    Trtexec,
    build_arguments,
    inputs_argument,
    measure_arguments,
)
from hgkd_edge.bench.inputs import SEED, make_inputs
from hgkd_edge.bench.models import ModelFile
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import InputInfo
from hgkd_edge.errors import DeviceError, RunError

__all__ = ["EdgeCase", "EdgeJob", "make_job"]

# trtexec's own 200 ms is over before a Jetson's clocks have risen.
WARMUP_MS = 2000
IDLE_S = 2.0
# Without a word for this long, either end takes the network for dead.
SILENCE_S = 60.0


@dataclass(frozen=True)
class EdgeCase:
    """One case as the host sees it; `wire` is what the agent gets."""

    name: str
    model: ModelFile
    precision: str
    batch: int
    threads: int | None
    inputs: list[InputInfo]
    wire: dict[str, Any] = field(repr=False)


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
    files: dict[str, bytes | Path] = {
        f"model-{index}.onnx": model.path for index, model in enumerate(models)
    }
    cases: list[EdgeCase] = []
    for model, precision in wanted:
        for batch in options.batches:
            for threads in (None,) if tool else options.threads:
                number = len(cases)
                case, extra = _case(
                    number, models.index(model), model, precision, batch, threads, options, tool
                )
                cases.append(case)
                files |= extra
    used = {f"model-{case.wire['model']}.onnx" for case in cases}
    files = {name: item for name, item in files.items() if name in used or name.startswith("input")}
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
    pairs = []
    for precision in options.precisions:
        exact = [model for model in models if model.precision == precision]
        stand_in = [model for model in models if model.precision == "fp32"]
        if exact:
            pairs += [(model, precision) for model in exact]
        elif may_build and precision == "fp16":
            pairs += [(model, precision) for model in stand_in]
    if not pairs:
        found = ", ".join(f"{model.label} ({model.precision})" for model in models)
        raise RunError(
            f"no model of precision {' or '.join(options.precisions)}; found {found}",
            hint=f"hgkd-edge export --onnx --precision {options.precisions[0]}",
        )
    return pairs


def _case(
    number: int,
    index: int,
    model: ModelFile,
    precision: str,
    batch: int,
    threads: int | None,
    options: BenchOptions,
    tool: Trtexec | None,
) -> tuple[EdgeCase, dict[str, bytes | Path]]:
    """One case, and the input files it adds."""
    arrays, inputs = make_inputs(model, batch=batch, images=options.images)
    files: dict[str, bytes | Path] = {}
    entries = []
    for place, record in enumerate(inputs):
        entry: dict[str, Any] = {
            "name": record.name,
            "shape": record.shape,
            "dtype": record.dtype,
            "file": None,
        }
        if record.source == "images":
            entry["file"] = f"input-{number}-{place}.bin"
            files[entry["file"]] = arrays[record.name].tobytes()
        entries.append(entry)
    wire: dict[str, Any] = {
        "id": f"case-{number}",
        "number": number,
        "model": index,
        "inputs": entries,
        "copies": options.copies,
        "threads": threads,
        "seed": SEED,
        "warmup_ms": WARMUP_MS,
    }
    if tool is not None:
        shapes = {record.name: record.shape for record in inputs}
        dynamic = any(
            not isinstance(axis, int) or axis < 1 for one in model.info.inputs for axis in one.shape
        )
        wire["build"] = build_arguments(
            tool,
            shapes=shapes,
            dynamic=dynamic,
            model_precision=model.precision,
            precision=precision,
        )
        wire["measure"] = measure_arguments(
            tool,
            shapes=shapes,
            dynamic=dynamic,
            copies=options.copies,
            warmup_ms=WARMUP_MS,
            duration_s=options.duration_s / _rounds(options, tool),
            count=-(-options.count // _rounds(options, tool)) if options.count else None,
        ) + inputs_argument({entry["name"]: entry["file"] for entry in entries if entry["file"]})
        # trtexec draws its own random values.
        inputs = [one.model_copy(update={"seed": None}) for one in inputs]
    name = f"{model.label} {'trtexec' if tool else 'ort'} {precision} b{batch}"
    name += f" t{threads}" if threads else ""
    return EdgeCase(name, model, precision, batch, threads, inputs, wire), files


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
    entries = [_file_entry(name, item, cases) for name, item in sorted(files.items())]
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
        "tool": "trtexec" if tool else "onnxruntime",
        "trtexec": facts.get("trtexec"),
        "files": entries,
        "cases": [case.wire for case in cases],
        "method": {
            "duration_s": options.duration_s,
            "count": options.count,
            "rounds": _rounds(options, tool),
            "min_runs": 20,
            "warmup_min_s": 0.2,
            "warmup_max_s": 5.0,
            "idle_s": IDLE_S,
        },
    }


def _file_entry(name: str, item: bytes | Path, cases: Sequence[EdgeCase]) -> dict[str, Any]:
    if isinstance(item, bytes):
        return {"name": name, "size": len(item), "sha256": hashlib.sha256(item).hexdigest()}
    known = next(case.model.info for case in cases if case.model.path == item)
    return {"name": name, "size": item.stat().st_size, "sha256": known.sha256}
