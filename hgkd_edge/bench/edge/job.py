"""Models and options -> a job: the files sent to the device, and the steps it runs.

Models are measured by trtexec if present, else by onnxruntime on the device's CPU.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from exporters.files import file_sha256
from exporters.network_files import renamed_files
from hgkd_edge.bench import method
from hgkd_edge.bench.edge import ort_device
from hgkd_edge.bench.edge.trtexec import (
    Trtexec,
    build_arguments,
    inputs_argument,
    loadable_names,
    measure_arguments,
    output_arguments,
)
from hgkd_edge.bench.method import Plan, visiting_order
from hgkd_edge.bench.models import ModelFile
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import InputInfo
from hgkd_edge.bench.verification import Probe, loosest, make_probe
from hgkd_edge.errors import DeviceError, RunError

__all__ = ["EdgeCase", "EdgeJob", "make_job"]

# trtexec's own 200 ms is over before a Jetson's clocks have risen.
WARMUP_MS = 2000
# Each compared image starts trtexec on the device (batch 1), a second or two.
IMAGES = 4
# Compared output values: about 10 bytes each in trtexec's JSON.
MOST_VALUES = 1_000_000


@dataclass(frozen=True)
class EdgeCase:
    """One case.

    Args:
        model: The model.
        file: Its name on the device.
        precision: Precision of the build.
        batch: B.
        threads: Threads of ONNX Runtime.
        probe: The inputs and the expected outputs.
        calls: For each call, each input with the name of its file on the device.
        inputs: The inputs, for the record.
        build: Command that builds the engine; empty where there is no trtexec.
        check: For each call, the command that computes its outputs.
        measure: Command of one visit.
    """

    model: ModelFile
    file: str
    precision: str
    batch: int
    threads: int | None
    probe: Probe = field(repr=False)
    calls: list[list[dict[str, Any]]] = field(repr=False)
    inputs: list[InputInfo]
    build: list[str] = field(default_factory=list)
    check: list[list[str]] = field(default_factory=list)
    measure: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The case in bench.json."""
        threads = f" t{self.threads}" if self.threads else ""
        runner = "trtexec" if self.build else "ort"
        return f"{self.model.label} {runner} {self.precision} b{self.batch}{threads}"

    @property
    def bound(self) -> str:
        """Row of exporters' table of tolerances: TensorRT may compute fp32 in TF32."""
        return loosest(self.precision, "tf32" if self.build else self.precision)


@dataclass(frozen=True)
class EdgeJob:
    """A job: `id` names its folder on the device, `order` lists the cases as they are visited."""

    id: str
    trtexec: Trtexec | None
    cases: list[EdgeCase]
    order: list[int]
    files: dict[str, bytes | Path] = field(repr=False)


def make_job(
    models: Sequence[ModelFile], options: BenchOptions, facts: Mapping[str, str], *, where: str
) -> EdgeJob:
    """Plan the measurement for a device from its facts.

    Args:
        models: Files to measure.
        options: Batches, precisions, copies, duration, ...
        facts: The device's facts.
        where: Name of the device for messages.

    Raises:
        DeviceError: The device has neither trtexec nor onnxruntime, or cannot run the request.
        RunError: No model of the wanted precision.
    """
    tool = Trtexec.from_help(facts.get("trtexec_help", "")) if facts.get("trtexec") else None
    if tool is None and not facts.get("onnxruntime", "")[:1].isdigit():
        raise DeviceError(
            f"{where} has neither trtexec nor a Python with numpy and onnxruntime",
            hint="on a Jetson: sudo apt install libnvinfer-bin; elsewhere: pip install onnxruntime",
        )
    # trtexec measures whole seconds, so the number of rounds is limited to the seconds.
    rounds = options.rounds
    if tool and not options.count:
        rounds = max(1, min(rounds, int(options.duration_s)))
    files: dict[str, bytes | Path] = {}
    cases: list[EdgeCase] = []
    for model, precision in _wanted(models, options, may_build=tool is not None):
        index = models.index(model)
        files |= renamed_files(model.path, f"model-{index}.onnx")
        for batch in options.batches:
            probe = make_probe(
                model,
                batch=batch,
                images=options.images,
                most_images=IMAGES,
                most_values=MOST_VALUES,
            )
            calls = _calls(probe, f"input-{index}-{batch}")
            files |= {
                entry["file"]: feeds[entry["name"]].tobytes()
                for feeds, call in zip(probe.feeds, calls, strict=True)
                for entry in call
            }
            for threads in (None,) if tool else options.threads:
                case = EdgeCase(
                    model,
                    f"model-{index}.onnx",
                    precision,
                    batch,
                    threads,
                    probe,
                    calls,
                    inputs=probe.inputs,
                )
                if tool:
                    case = _for_trtexec(
                        case, tool, facts["trtexec"], options, number=len(cases), rounds=rounds
                    )
                cases.append(case)
    order = [index for turn in visiting_order(len(cases), rounds) for index in turn]
    identity = hashlib.sha256(repr([case.build for case in cases]).encode())
    identity.update((tool.name if tool else "").encode())
    for name, item in sorted(files.items()):
        content = file_sha256(item) if isinstance(item, Path) else hashlib.sha256(item).hexdigest()
        identity.update(f"{name} {content}".encode())
    if tool:
        files |= _trtexec_steps(cases, order)
    else:
        plan = Plan(duration_s=options.duration_s, count=options.count, rounds=rounds)
        files |= _onnxruntime_steps(cases, plan, options)
    return EdgeJob(identity.hexdigest()[:32], tool, cases, order, files)


def _wanted(
    models: Sequence[ModelFile], options: BenchOptions, *, may_build: bool
) -> list[tuple[ModelFile, str]]:
    """(model, precision to build) pairs; an FP32 file is used for FP16 if there is no FP16 file."""
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


def _calls(probe: Probe, stem: str) -> list[list[dict[str, Any]]]:
    return [
        [
            {
                **record.model_dump(include={"name", "shape", "dtype"}),
                "file": f"{stem}-{call}-{n}.bin",
            }
            for n, record in enumerate(probe.inputs)
        ]
        for call in range(len(probe.feeds))
    ]


def _for_trtexec(
    case: EdgeCase,
    tool: Trtexec,
    program: str,
    options: BenchOptions,
    *,
    number: int,
    rounds: int,
) -> EdgeCase:
    """The case with the commands that build, verify and measure it."""
    shapes = {record.name: record.shape for record in case.inputs}
    dynamic = any(
        not isinstance(axis, int) or axis < 1
        for one in case.model.info.inputs
        for axis in one.shape
    )
    names = {
        "{onnx}": case.file,
        "{engine}": f"engine-{number}.plan",
        "{times}": f"times-{number}.json",
        "{outputs}": f"outputs-{number}.json",
        "{cache}": "timing.cache",
    }

    def filled(arguments: list[str], call: list[dict[str, Any]] | None = None) -> list[str]:
        values = inputs_argument({one["name"]: one["file"] for one in call}) if call else []
        for name, file in names.items():
            arguments = [argument.replace(name, file) for argument in arguments]
        return [program, *arguments, *values]

    loadable = loadable_names(shapes)
    probe, inputs = case.probe, case.inputs
    if not loadable:  # trtexec then draws random values
        reason = "trtexec cannot be given values for inputs of these names"
        probe = replace(probe, wanted=None, reason=probe.reason or reason)
        inputs = [one.model_copy(update={"seed": None, "source": "synthetic"}) for one in inputs]
    build = build_arguments(
        tool,
        shapes=shapes,
        dynamic=dynamic,
        model_precision=case.model.precision,
        precision=case.precision,
    )
    check = output_arguments(tool, shapes=shapes, dynamic=dynamic)
    measure = measure_arguments(
        tool,
        shapes=shapes,
        dynamic=dynamic,
        copies=options.copies,
        warmup_ms=WARMUP_MS,
        duration_s=options.duration_s / rounds,
        count=-(-options.count // rounds) if options.count else None,
    )
    return replace(
        case,
        probe=probe,
        inputs=inputs,
        build=filled(build),
        check=[filled(check, call) for call in case.calls] if probe.wanted else [],
        measure=filled(measure, case.calls[0] if loadable else None),
    )


def _trtexec_steps(cases: Sequence[EdgeCase], order: Sequence[int]) -> dict[str, bytes | Path]:
    """Steps: build all, verify all, then visit the cases in turn."""
    steps, files = [], {}
    for number, case in enumerate(cases):
        steps.append(f"build build-{number} engine-{number}.plan")
        files[f"build-{number}.args"] = _lines(case.build)
        files[f"measure-{number}.args"] = _lines(case.measure)
    for number, case in enumerate(cases):
        for call, check in enumerate(case.check):
            steps.append(f"run check-{number}-{call} outputs-{number}.json")
            files[f"check-{number}-{call}.args"] = _lines(check)
    steps += ["wait", "idle", *(f"run measure-{number} times-{number}.json" for number in order)]
    return {**files, "steps": _lines(steps)}


def _onnxruntime_steps(
    cases: Sequence[EdgeCase], plan: Plan, options: BenchOptions
) -> dict[str, bytes | Path]:
    """Steps: verify all, then measure all, with the script that is sent along with its imports."""
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
    return {
        "ort_device.py": Path(ort_device.__file__),
        "hgkd_edge/__init__.py": b"",
        "hgkd_edge/bench/__init__.py": b"",
        "hgkd_edge/bench/method.py": Path(method.__file__),
        "hgkd_edge/bench/records.py": b"Warmup = dict\n",
        "job.json": json.dumps({"cases": wire, "plan": asdict(plan)}).encode(),
        "verify.args": _lines(["python3", "ort_device.py", "verify", "outputs.json"]),
        "measure.args": _lines(["python3", "ort_device.py", "measure", "times.json"]),
        "steps": _lines(["run verify outputs.json", "wait", "idle", "run measure times.json"]),
    }


def _lines(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
