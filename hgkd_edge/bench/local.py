"""Measure models with the runners of this machine, all cases in one interleaved run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hgkd_edge.bench.environment import environment, environment_warnings, resident_mb
from hgkd_edge.bench.inputs import make_inputs
from hgkd_edge.bench.method import Plan, Trace, measure, timed
from hgkd_edge.bench.models import ModelFile, run_folder_of
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import InputInfo, Measurement, Refusal, Session, Verification
from hgkd_edge.bench.runners import Case, Opened, Runner
from hgkd_edge.bench.session import measurement_of, session_of
from hgkd_edge.bench.verification import Probe, judge, loosest, make_probe
from hgkd_edge.errors import DeviceError, reason_of

__all__ = ["measure_here"]

Progress = Callable[[str, float], None]

# All that `export` keeps in a run.
IMAGES = 16


@dataclass
class _Subject:
    """A case, what opened it, and what opening it cost."""

    case: Case
    runner: Runner
    inputs: list[InputInfo]
    opened: Opened
    first_ms: float
    memory_mb: float | None

    @property
    def name(self) -> str:
        return _name(self.case, self.runner)


def _name(case: Case, runner: Runner) -> str:
    threads = f" t{case.threads}" if case.threads else ""
    return f"{case.model.label} {runner.name} b{case.batch}{threads}"


def measure_here(
    models: Sequence[ModelFile],
    runners: Sequence[Runner],
    refusals: Sequence[Refusal],
    options: BenchOptions,
    *,
    progress: Progress,
) -> Session:
    """Every model x runner x batch x thread count, verified, then timed in turn.

    Args:
        models: ONNX files, and what was exported from them for the runners.
        runners: What they are measured with.
        refusals: The device's runners that cannot run here, for the record.
        options: Batches, threads, ...
        progress: Told what is being done.

    Raises:
        DeviceError: A batch size or a model that cannot be used here.
        WrongOutputs: What would be timed computes something else than its ONNX file.
    """
    facts = environment()
    plan = Plan(duration_s=options.duration_s, count=options.count, rounds=options.rounds)
    with ExitStack() as stack:
        subjects, unable = _open_all(models, runners, options, stack, progress)
        verifications = _verify_all(subjects, options, progress)
        traces = measure([subject.opened.run for subject in subjects], plan, progress=progress)
    return session_of(
        options.device,
        options,
        [_measured(*one) for one in zip(subjects, traces, verifications, strict=True)],
        models=[one for one in models if any(takes(r, one, models) for r in runners)],
        environment=facts,
        refusals=[*refusals, *unable],
        warnings=environment_warnings(facts),
    )


def _open_all(
    models: Sequence[ModelFile],
    runners: Sequence[Runner],
    options: BenchOptions,
    stack: ExitStack,
    progress: Progress,
) -> tuple[list[_Subject], list[Refusal]]:
    """All cases are open at once, so that they can be visited in turn.

    Where the device stands for several runners, one that fails does not take the others with it.

    Raises:
        DeviceError: A case of a named runner, or every case, cannot be opened.
    """
    wanted = [
        (model, runner, batch, threads)
        for model in models
        for runner in runners
        if takes(runner, model, models)
        for batch in options.batches
        for threads in (options.threads if runner.uses_threads else (None,))
    ]
    subjects: list[_Subject] = []
    unable: list[Refusal] = []
    for index, (model, runner, batch, threads) in enumerate(wanted):
        feeds, inputs = make_inputs(model, batch=batch, images=options.images)
        case = Case(
            model=model,
            feeds=feeds,
            batch=batch,
            threads=threads,
            copies=options.copies,
            torch_module=_torch_module(model, runner, options),
            trust_engine=options.trust_engine,
        )
        try:
            subjects.append(_open(case, runner, inputs, stack))
        except DeviceError as error:
            if options.runners or len(runners) == 1:
                raise
            unable.append(Refusal(name=_name(case, runner), reason=error.message, hint=error.hint))
        progress("load", (index + 1) / len(wanted))
    if not subjects:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in unable)
        raise DeviceError(f"nothing could be loaded ({reasons})", hint=unable[0].hint)
    return subjects, unable


def _open(case: Case, runner: Runner, inputs: list[InputInfo], stack: ExitStack) -> _Subject:
    """Load a case and run it once, before anything else runs; what both took of memory."""
    before = resident_mb()
    opened = runner.open(case)
    stack.callback(opened.close)
    try:
        first_ms = timed(opened.run)
    except Exception as error:  # the runtimes' exceptions share no public base
        fed = ", ".join(f"{one.name} {one.dtype}{one.shape}" for one in inputs)
        raise DeviceError(
            f"{runner.name} cannot run '{case.model.path}' with {fed}: {reason_of(error)}",
            hint="export the model with the sizes of its inputs fixed, or set --batch",
        ) from error
    after = resident_mb()
    grown = None if before is None or after is None else max(0.0, after - before)
    return _Subject(case, runner, inputs, opened, first_ms, grown)


def _torch_module(model: ModelFile, runner: Runner, options: BenchOptions) -> Any:
    """The module of the run a file belongs to, when this runner measures one."""
    if not runner.needs_torch or options.load_torch is None:
        return None
    run = run_folder_of(model.path)
    return None if run is None else options.load_torch(run)


def takes(runner: Runner, model: ModelFile, models: Sequence[ModelFile]) -> bool:
    """Whether a runner measures a file: what was exported for it, else the ONNX file itself."""
    if model.source is not None:
        return model.path.suffix == runner.opens
    return not any(one.source == model.path and one.path.suffix == runner.opens for one in models)


def _verify_all(
    subjects: Sequence[_Subject], options: BenchOptions, progress: Progress
) -> list[Verification | str | None]:
    """How each case's outputs compare, or why they cannot be compared; None for the reference.

    Raises:
        WrongOutputs: They disagree.
    """
    probes: dict[tuple[Path, int], Probe] = {}
    found: list[Verification | str | None] = []
    for index, subject in enumerate(subjects):
        case, opened = subject.case, subject.opened
        if opened.outputs is None:
            found.append(None)
            continue
        key = case.model.reference, case.batch
        if key not in probes:
            probes[key] = make_probe(
                case.model, batch=case.batch, images=options.images, most_images=IMAGES
            )
        precision = case.model.precision
        found.append(
            judge(
                subject.name,
                probes[key],
                [opened.outputs(feeds) for feeds in probes[key].feeds],
                bound=loosest(precision, opened.computes or precision),
                where=f"on {case.model.reference.name}",
                unverified=options.unverified,
            )
        )
        progress("verify", (index + 1) / len(subjects))
    return found


def _measured(
    subject: _Subject, trace: Trace, found: Verification | str | None
) -> tuple[Measurement, list[np.ndarray]]:
    """A record, and the times of its rounds."""
    one = measurement_of(
        trace,
        first_ms=subject.first_ms,
        found=found,
        case=subject.name,
        model=subject.case.model.label,
        runner=subject.runner.name,
        runner_version=subject.runner.version(),
        backend=subject.runner.backend,
        precision=subject.case.model.precision,
        batch=subject.case.batch,
        threads=subject.opened.threads,
        copies=subject.case.copies,
        inputs=subject.inputs,
        load_ms=subject.opened.load_ms,
        build_ms=subject.opened.build_ms,
        host_memory_mb=subject.memory_mb,
        engine_mb=subject.opened.engine_mb,
        details=subject.opened.details,
        warnings=subject.opened.warnings,
    )
    return one, trace.rounds
