"""Measure models with the runtimes of this machine, all cases in one interleaved run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporters.errors import UserError
from exporters.runtimes import RUNTIMES, Options, Runtime, Session
from hgkd_edge.bench.environment import environment, environment_warnings, resident_mb
from hgkd_edge.bench.inputs import (
    Probe,
    images_for,
    judge,
    loosest,
    make_inputs,
    make_probe,
)
from hgkd_edge.bench.measurement import Case, Execution, measurement_of, session_of
from hgkd_edge.bench.models import ModelFile, for_tensorrt, run_folder_of
from hgkd_edge.bench.options import BenchOptions, Progress
from hgkd_edge.bench.records import InputInfo, Measurement, Refusal, Verification
from hgkd_edge.bench.records import Session as Record
from hgkd_edge.bench.timing import Trace, measure, timed
from hgkd_edge.errors import DeviceError, reason_of
from hgkd_edge.files import engines_dir

__all__ = ["file_of", "list_runners", "measure_here", "runners_for"]

# Default runners of `--device`.
_OF_DEVICE = {
    "cpu": ("ort-cpu",),
    "cuda": ("ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx"),
    "openvino": ("openvino",),
}
_MODULE = ".safetensors"  # the file of a runner that measures a PyTorch module
IMAGES = 16  # to compare: all that `export` keeps in a run


def list_runners(names: Iterable[str] = ()) -> list[tuple[str, Refusal | None]]:
    """(name, None) for a runner that works here, (name, why not) for one that does not."""
    missing = {name: RUNTIMES[name].missing() for name in names or RUNTIMES}
    return [(name, Refusal.of(name, error) if error else None) for name, error in missing.items()]


def runners_for(device: str, names: Sequence[str]) -> tuple[list[Runtime], list[Refusal]]:
    """The runners to measure with (by default those of the device), and those that cannot run here.

    Raises:
        DeviceError: An unknown name, a named runner that cannot run, or none left for the device.
    """
    for name in names:
        if name not in RUNTIMES:
            raise DeviceError(f"runner '{name}' is not known", hint=f"one of {', '.join(RUNTIMES)}")
    found = list_runners(names or _OF_DEVICE[device])
    able = [RUNTIMES[name] for name, refusal in found if refusal is None]
    refused = [refusal for _name, refusal in found if refusal is not None]
    if names and refused:
        raise DeviceError(f"runner '{refused[0].name}': {refused[0].reason}", hint=refused[0].hint)
    if not able:
        raise _nothing_left(f"nothing can run on --device {device} here", refused)
    return able, refused


def _nothing_left(what: str, refused: Sequence[Refusal]) -> DeviceError:
    reasons = "; ".join(f"{one.name}: {one.reason}" for one in refused)
    hint = next((one.hint for one in refused if one.hint), "")
    return DeviceError(f"{what} ({reasons})", hint=hint)


def file_of(runner: Runtime) -> str:
    """Suffix of the files that it measures; a PyTorch module is measured for its ONNX file."""
    return ".onnx" if runner.opens == _MODULE else runner.opens


@dataclass(frozen=True)
class _Opened:
    """A case ready to be timed, and what opening it cost."""

    case: Case
    inputs: list[InputInfo]
    session: Session
    run: Callable[[], object]
    first_ms: float
    memory_mb: float | None


def measure_here(
    models: Sequence[ModelFile],
    runners: Sequence[Runtime],
    refusals: Sequence[Refusal],
    options: BenchOptions,
    *,
    progress: Progress,
) -> Record:
    """Every model x runner x batch x thread count, verified, then timed in turn.

    `models` are ONNX files, and what was exported from them for the runners. `refusals`, the
    runners that cannot run here, are recorded.

    Raises:
        DeviceError: A batch size or a model that cannot be used here.
        WrongOutputs: The outputs to be timed differ from the ONNX file's.
    """
    machine = environment()
    cases = [
        Case(model, runner.name, model.precision, batch, threads)
        for model in models
        for runner in runners
        if _takes(runner, model, models)
        for batch in options.batches
        for threads in (options.threads if runner.uses_threads else (None,))
    ]
    builds = any(file_of(runner) == ".plan" for runner in runners)
    unbuilt = for_tensorrt([one for one in models if one.source is None])[1] if builds else []
    with ExitStack() as stack:
        opened, unable = _open_all(cases, unbuilt, options, stack, progress)
        found = _verify_all(opened, options, progress)
        traces = measure([one.run for one in opened], options.plan(), progress=progress)
    return session_of(
        options.device,
        options,
        [_measured(*one, options) for one in zip(opened, traces, found, strict=True)],
        models=list({case.model.path: case.model for case in cases}.values()),
        machine=machine,
        refusals=[*refusals, *unable],
        warnings=environment_warnings(machine),
    )


def _takes(runner: Runtime, model: ModelFile, models: Sequence[ModelFile]) -> bool:
    """Whether a runner measures a file: the artifact exported for it, else the ONNX file, from
    which TensorRT could not build one of INT8 flavor `cpu`."""
    suffix = file_of(runner)
    if model.source is not None:
        return model.path.suffix == suffix
    if suffix == ".plan" and model.info.asymmetric:
        return False
    return not any(one.source == model.path and one.path.suffix == suffix for one in models)


def _open_all(
    cases: Sequence[Case],
    unbuilt: Sequence[Refusal],
    options: BenchOptions,
    stack: ExitStack,
    progress: Progress,
) -> tuple[list[_Opened], list[Refusal]]:
    """Open all cases at once, so that they can be visited in turn; add to the refusals `unbuilt`.

    If the device implies several runners, the failure of one does not stop the others.

    Raises:
        DeviceError: A case of a named runner, or every case, cannot be opened.
    """
    opened: list[_Opened] = []
    unable = list(unbuilt)
    several = len({case.runner for case in cases}) > 1
    for index, case in enumerate(cases):
        try:
            opened.append(_open(case, options, stack))
        except DeviceError as error:
            if options.runners or not several:
                raise
            unable.append(Refusal.of(case.name, error))
        progress("load", (index + 1) / len(cases))
    if not opened:
        raise _nothing_left("nothing could be loaded", unable)
    return opened, unable


def _open(case: Case, options: BenchOptions, stack: ExitStack) -> _Opened:
    """Load a case and run it once before anything else runs, and record the memory of both."""
    images = images_for(case.model, options)
    feeds, inputs = make_inputs(case.model, batch=case.batch, images=images)
    before = resident_mb()
    try:
        session = _session_of(case, feeds, options)
    except UserError as error:
        raise DeviceError(error.message, hint=error.hint) from error
    stack.callback(session.close)
    try:
        run = session.bind(feeds, options.copies)
        first_ms = timed(run)
    except Exception as error:  # the runtimes' exceptions share no public base class
        fed = ", ".join(f"{one.name} {one.dtype}{one.shape}" for one in inputs)
        raise DeviceError(
            f"{case.runner} cannot run '{case.model.path}' with {fed}: {reason_of(error)}",
            hint="export the model with the sizes of its inputs fixed, or set --batch",
        ) from error
    after = resident_mb()
    grown = None if before is None or after is None else max(0.0, after - before)
    return _Opened(case, inputs, session, run, first_ms, grown)


def _session_of(case: Case, feeds: dict[str, np.ndarray], options: BenchOptions) -> Session:
    """A session for exactly these shapes.

    An engine is machine code: one that was not built on this machine is loaded only with
    `trust_engine`.

    Raises:
        UserError: The runtime refuses the model, or there is no file for it.
    """
    runtime, model = RUNTIMES[case.runner], case.model
    shapes = {name: array.shape for name, array in feeds.items()}
    if _runs_module(case):
        run = run_folder_of(model.path)
        if run is None or options.load_torch is None:
            raise DeviceError(
                f"runner '{case.runner}' has no PyTorch module for '{model.label}'",
                hint="give a run folder, whose backbone it can load, or another --runner",
            )
        return runtime.open(options.load_torch(run), Options(shapes, case.threads))
    if runtime.opens == ".plan" and model.source is None:
        raise DeviceError(
            f"'{model.path}': no engine for {case.runner} was exported from it",
            hint="build it: hgkd-edge export --trt, or measure with --runner ort-tensorrt",
        )
    as_deployed = Options(
        shapes,
        case.threads,
        exact=False,
        made_from=model.source,
        built_here=engines_dir(),
        trust_engine=options.trust_engine,
    )
    return runtime.open(model.path, as_deployed)


def _runs_module(case: Case) -> bool:
    return RUNTIMES[case.runner].opens == _MODULE


def _verify_all(
    opened: Sequence[_Opened], options: BenchOptions, progress: Progress
) -> list[Verification | str | None]:
    """Compare each case's outputs, or say why not; None for the references.

    The references are ONNX Runtime on the CPU and the exported module.

    Raises:
        WrongOutputs: They disagree.
    """
    probes: dict[tuple[Path, int], Probe] = {}
    found: list[Verification | str | None] = []
    for index, one in enumerate(opened):
        case, model = one.case, one.case.model
        if case.runner == "ort-cpu" or _runs_module(case):
            found.append(None)
            continue
        key = model.reference, case.batch
        if key not in probes:
            probes[key] = make_probe(
                model,
                batch=case.batch,
                images=images_for(model, options),
                most_images=IMAGES,
            )
        found.append(
            judge(
                case.name,
                probes[key],
                [one.session.infer(feeds) for feeds in probes[key].feeds],
                bound=loosest(model.precision, one.session.details.computes or model.precision),
                where=f"on {model.reference.name}",
                unverified=options.unverified,
            )
        )
        progress("verify", (index + 1) / len(opened))
    return found


def _measured(
    one: _Opened, trace: Trace, found: Verification | str | None, options: BenchOptions
) -> Measurement:
    case, details, runtime = one.case, one.session.details, RUNTIMES[one.case.runner]
    warnings = []
    if case.model.precision == "fp32" and details.computes in ("bf16", "fp16"):
        warnings.append(
            f"{one.session.runtime} computes this fp32 model in {details.computes} here"
        )
    execution = Execution(
        runner_version=runtime.version(),
        backend=runtime.backend,
        threads=details.threads,
        inputs=one.inputs,
        first_inference_ms=one.first_ms,
        load_ms=details.load_ms,
        build_ms=details.build_ms,
        host_memory_mb=one.memory_mb,
        engine_mb=details.size_mb,
        details=details.settings,
    )
    return measurement_of(case, trace, execution, options, found=found, warnings=warnings)
