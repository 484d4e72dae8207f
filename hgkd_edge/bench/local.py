"""Measure models with the runners of this machine, all cases in one interleaved run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporters.runtimes import RUNTIMES, Runtime, Session
from hgkd_edge.bench.environment import environment, environment_warnings, resident_mb
from hgkd_edge.bench.inputs import make_inputs
from hgkd_edge.bench.method import Plan, Trace, measure, timed
from hgkd_edge.bench.models import ModelFile, run_folder_of
from hgkd_edge.bench.options import BenchOptions, Progress
from hgkd_edge.bench.records import InputInfo, Measurement, Refusal, Verification
from hgkd_edge.bench.records import Session as Record
from hgkd_edge.bench.runners import file_of, open_case
from hgkd_edge.bench.session import Case, measurement_of, session_of
from hgkd_edge.bench.verification import Probe, judge, loosest, make_probe
from hgkd_edge.errors import DeviceError, reason_of

__all__ = ["measure_here"]

# All images that `export` keeps in a run.
IMAGES = 16


@dataclass(frozen=True)
class _Opened:
    """A case ready to be timed, and what opening it cost."""

    case: Case
    inputs: list[InputInfo]
    session: Session
    run: Callable[[], object]
    build_ms: float | None
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
    facts = environment()
    plan = Plan(duration_s=options.duration_s, count=options.count, rounds=options.rounds)
    cases = [
        Case(model, runner.name, model.precision, batch, threads)
        for model in models
        for runner in runners
        if _takes(runner, model, models)
        for batch in options.batches
        for threads in (options.threads if runner.uses_threads else (None,))
    ]
    with ExitStack() as stack:
        opened, unable = _open_all(cases, options, stack, progress)
        found = _verify_all(opened, options, progress)
        traces = measure([one.run for one in opened], plan, progress=progress)
    return session_of(
        options.device,
        options,
        [_measured(*one, options) for one in zip(opened, traces, found, strict=True)],
        models=list({case.model.path: case.model for case in cases}.values()),
        environment=facts,
        refusals=[*refusals, *unable],
        warnings=environment_warnings(facts),
    )


def _takes(runner: Runtime, model: ModelFile, models: Sequence[ModelFile]) -> bool:
    """Whether a runner measures a file: the artifact exported for it, else the ONNX file."""
    suffix = file_of(runner)
    if model.source is not None:
        return model.path.suffix == suffix
    return not any(one.source == model.path and one.path.suffix == suffix for one in models)


def _open_all(
    cases: Sequence[Case], options: BenchOptions, stack: ExitStack, progress: Progress
) -> tuple[list[_Opened], list[Refusal]]:
    """Open all cases at once, so that they can be visited in turn.

    If the device implies several runners, the failure of one does not stop the others.

    Raises:
        DeviceError: A case of a named runner, or every case, cannot be opened.
    """
    opened: list[_Opened] = []
    unable: list[Refusal] = []
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
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in unable)
        raise DeviceError(f"nothing could be loaded ({reasons})", hint=unable[0].hint)
    return opened, unable


def _open(case: Case, options: BenchOptions, stack: ExitStack) -> _Opened:
    """Load a case and run it once before anything else runs, and record the memory of both."""
    feeds, inputs = make_inputs(case.model, batch=case.batch, images=options.images)
    module = _module(case, options)
    before = resident_mb()
    session, build_ms = open_case(
        RUNTIMES[case.runner],
        case.model,
        feeds,
        threads=case.threads,
        module=module,
        trust_engine=options.trust_engine,
    )
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
    return _Opened(case, inputs, session, run, build_ms, first_ms, grown)


def _module(case: Case, options: BenchOptions) -> Any:
    """The module of the file's run, if this runner measures modules."""
    run = run_folder_of(case.model.path) if _runs_module(case) else None
    return None if run is None or options.load_torch is None else options.load_torch(run)


def _runs_module(case: Case) -> bool:
    return RUNTIMES[case.runner].packages == ("torch",)


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
                model, batch=case.batch, images=options.images, most_images=IMAGES
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
    return measurement_of(
        case,
        trace,
        options,
        first_ms=one.first_ms,
        found=found,
        warnings=warnings,
        runner_version=runtime.version(),
        backend=runtime.backend,
        threads=details.threads,
        inputs=one.inputs,
        load_ms=details.load_ms,
        build_ms=one.build_ms if details.build_ms is None else details.build_ms,
        host_memory_mb=one.memory_mb,
        engine_mb=details.size_mb,
        details=dict(details.settings),
    )
