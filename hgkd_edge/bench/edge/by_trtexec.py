"""Measure with the device's own trtexec: build every engine, compare its outputs, then time it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hgkd_edge.bench.edge.job import EdgeCase, Job, Power, Spans, one_a_line
from hgkd_edge.bench.edge.link import Files, Finished, Link
from hgkd_edge.bench.edge.trtexec import (
    Engine,
    Log,
    Times,
    Trtexec,
    parse_log,
    parse_times,
    settings_warnings,
)
from hgkd_edge.bench.measurement import Execution
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import Measurement, Refusal, Verification, Warmup
from hgkd_edge.bench.timing import Trace, visiting_order
from hgkd_edge.errors import WorkFailed

__all__ = ["TrtexecJob"]

# trtexec's own 200 ms is over before a Jetson's clocks have risen.
WARMUP_MS = 2000

_Command = list[str]


class TrtexecJob(Job):
    """Build all, verify all, then visit the cases in turn; `program` is trtexec's path there.

    A case whose build fails becomes a refusal; the others are measured.

    Raises:
        DeviceError: This trtexec cannot do what is asked.
    """

    computes = "tf32"  # TensorRT may compute fp32 in TF32

    def __init__(
        self,
        cases: list[EdgeCase],
        files: Files,
        options: BenchOptions,
        tool: Trtexec,
        program: str,
        refusals: Sequence[Refusal],
    ) -> None:
        self._tool, self._program = tool, program
        # trtexec measures whole seconds, so the number of rounds is limited to the seconds.
        seconds = max(1, int(options.duration_s))
        self._rounds = options.rounds if options.count else min(options.rounds, seconds)
        turns = visiting_order(len(cases), self._rounds)
        self._order = [number for turn in turns for number in turn]
        self._commands = [self._of(*pair, options) for pair in enumerate(cases)]
        builds = [build for build, _checks, _visit in self._commands]
        super().__init__(cases, files, options, builder=[tool.name, builds], refusals=refusals)
        self.files |= self._steps()

    def _of(
        self, number: int, case: EdgeCase, options: BenchOptions
    ) -> tuple[_Command, list[_Command], _Command]:
        """The commands that build the engine, compute each call's outputs, and time one visit."""
        axes = [axis for one in case.model.info.inputs for axis in one.shape]
        dynamic = any(not isinstance(axis, int) or axis < 1 for axis in axes)
        shapes = {record.name: record.shape for record in case.probe.inputs}
        engine = Engine(self._tool, case.file, f"engine-{number}.plan", shapes, dynamic)
        calls = [{one.name: one.file for one in call} for call in case.calls]
        visit = engine.measure(
            calls[0],
            f"times-{number}.json",
            copies=options.copies,
            warmup_ms=WARMUP_MS,
            duration_s=options.duration_s / self._rounds,
            count=-(-options.count // self._rounds) if options.count else None,
        )
        checks = [engine.compute(one, f"outputs-{number}.json") for one in calls]
        return (
            [self._program, *engine.build(case.model.precision, case.precision)],
            [[self._program, *check] for check in checks if case.probe.wanted],
            [self._program, *visit],
        )

    def _steps(self) -> Files:
        files: Files = {}
        builds, checks = [], []
        for number, (build, calls, visit) in enumerate(self._commands):
            engine = f"engine-{number}.plan"  # without it the device skips a step that names it
            builds.append(f"build build-{number} {engine}")
            files[f"build-{number}.args"] = one_a_line(build)
            files[f"measure-{number}.args"] = one_a_line(visit)
            for call, check in enumerate(calls):
                checks.append(f"run check-{number}-{call} outputs-{number}.json {engine}")
                files[f"check-{number}-{call}.args"] = one_a_line(check)
        visits = [
            f"run measure-{number} times-{number}.json engine-{number}.plan"
            for number in self._order
        ]
        return {**files, "steps": one_a_line([*builds, *checks, "idle", *visits])}

    def follow(self, link: Link) -> list[Measurement]:
        builds = self._built(link)
        found = {
            number: self.judged(
                self.cases[number],
                [link.finished("verifying", "trtexec").result for _ in self._commands[number][1]],
            )
            for number in builds
        }
        link.request(b"go\n")
        order = [number for number in self._order if number in builds]
        visits: dict[int, list[Finished]] = {number: [] for number in builds}
        for done, number in enumerate(order):
            visits[number].append(link.finished("measuring", "trtexec", done / len(order)))
        power = Power.parse(link.receive("power")[1])
        return [
            self._record(number, power, builds[number], found[number], visits[number])
            for number in builds
        ]

    def _built(self, link: Link) -> dict[int, Finished]:
        """The finished builds by the number of their case; the others become refusals.

        Raises:
            WorkFailed: Every build failed, or the connection broke.
        """
        builds: dict[int, Finished] = {}
        failures: list[WorkFailed] = []
        for number, case in enumerate(self.cases):
            try:
                builds[number] = link.finished("building", "trtexec")
            except WorkFailed as error:
                if link.broken:
                    raise
                failures.append(error)
                self.refusals.append(Refusal.of(case.name, error))
        if not builds:
            raise failures[0]
        return builds

    def _record(
        self,
        number: int,
        power: Power,
        build: Finished,
        found: Verification | str,
        visits: Sequence[Finished],
    ) -> Measurement:
        case, copies = self.cases[number], self.options.copies
        logs = [_log_of(visit) for visit in visits]
        times = [parse_times(one.result, copies=copies, warmup_ms=WARMUP_MS) for one in visits]
        rounds = [one.ms for one in times]
        seconds = sum(one.ms.size / one.queries_per_s for one in times)
        throughput = case.batch * sum(one.size for one in rounds) / seconds
        warmup = Warmup(
            runs=sum(log.warmup_runs or 0 for log in logs),
            seconds=len(visits) * WARMUP_MS / 1000,
            stable=_settled(rounds),
        )
        reused, size = build.result.split()
        build_s = _log_of(build).build_s or build.log[-1][0] - build.log[0][0]
        spans = [span for visit in visits for span in _inferring(visit)]
        execution = Execution(
            runner_version=self._tool.name,
            backend="TensorRT",
            threads=None,
            inputs=case.probe.inputs,
            first_inference_ms=None,
            load_ms=None if logs[0].load_s is None else logs[0].load_s * 1000,
            build_ms=build_s * 1000,
            host_memory_mb=max(visit.peak_kb for visit in visits) / 1024 or None,
            engine_mb=int(size) / 2**20,
            telemetry=power.telemetry(spans, throughput),
            details={"settings": logs[0].settings, "engine_reused": reused == "yes"},
            commands=[self._commands[number][0], self._commands[number][2]],
        )
        return self.record(
            case,
            Trace(warmup=warmup, rounds=rounds),
            execution,
            found=found,
            warnings=_warnings(logs, times, copies),
            seconds=seconds,
        )


def _log_of(finished: Finished) -> Log:
    return parse_log([line for _second, line in finished.log])


def _inferring(visit: Finished) -> Spans:
    """When trtexec measured; empty without the line that marks it: loading is not measuring."""
    begin = next((second for second, line in visit.log if "Starting inference" in line), None)
    end = next((second for second, line in visit.log if "Timing trace has" in line), None)
    if begin is None:
        return []
    return [(begin + WARMUP_MS / 1000, visit.log[-1][0] if end is None else end)]


def _warnings(logs: Sequence[Log], times: Sequence[Times], copies: str) -> list[str]:
    """Effective settings, trtexec's own warnings, and a trace that disagrees with its summary."""
    notes = [note for log in logs for note in settings_warnings(log, copies=copies)]
    figure = "Latency" if copies == "in" else "GPU Compute Time"
    for log, one in zip(logs, times, strict=True):
        reported, median = log.medians_ms.get(figure), float(np.median(one.ms))
        if reported and abs(median - reported) > 0.05 * reported:
            notes.append(
                f"the exported times' median, {median:.3f} ms, is not the {reported:.3f} ms that "
                "trtexec printed"
            )
    return list(dict.fromkeys(notes))


def _settled(rounds: Sequence[np.ndarray]) -> bool:
    """Whether each visit's last fifth is within 5 % of its first: the warm-up was enough."""
    fifths = [(part, max(1, part.size // 5)) for part in rounds]
    ends = [(np.median(part[:fifth]), np.median(part[-fifth:])) for part, fifth in fifths]
    return all(abs(last - first) <= 0.05 * first for first, last in ends)
