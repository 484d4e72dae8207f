"""What is measured on a device, whatever measures it there: cases, files, outputs, power."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporters.atomic_files import file_sha256
from exporters.network_files import renamed_files
from hgkd_edge.bench.edge.link import Files, Lines, Link, stamped
from hgkd_edge.bench.edge.tegrastats import telemetry_of
from hgkd_edge.bench.edge.trtexec import outputs_of, parse_outputs
from hgkd_edge.bench.inputs import Probe, images_for, judge, loosest, make_probe
from hgkd_edge.bench.measurement import Case, Execution, measurement_of
from hgkd_edge.bench.models import ModelFile, of_precisions
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import Measurement, Refusal, Telemetry, Verification
from hgkd_edge.bench.timing import Trace

__all__ = ["Calls", "EdgeCase", "Job", "Power", "Spans", "make_cases", "one_a_line"]

# Each compared image starts trtexec on the device (batch 1), a second or two.
IMAGES = 4
# Compared output values: about 10 bytes each in trtexec's JSON.
MOST_VALUES = 1_000_000
# Ten per second; a board's power varies from one sample to the next.
_FEW_SAMPLES = 10

Spans = list[tuple[float, float]]  # seconds of the device's clock


@dataclass(frozen=True)
class SentInput:
    """One input of a call; `file` holds its raw values."""

    name: str
    shape: list[int]
    dtype: str
    file: str


Calls = list[list[SentInput]]  # the inputs of each call


@dataclass(frozen=True)
class EdgeCase(Case):
    """One case; `file` and those of `calls` are names on the device."""

    file: str
    probe: Probe = field(repr=False)
    calls: Calls = field(repr=False)


def make_cases(
    models: Sequence[ModelFile], options: BenchOptions, runner: str
) -> tuple[list[EdgeCase], Files]:
    """The cases, and the files of their models and inputs.

    Raises:
        RunError: No model of the wanted precision.
    """
    files: Files = {}
    cases: list[EdgeCase] = []
    limits = {"most_images": IMAGES, "most_values": MOST_VALUES}
    by_trtexec = runner == "trtexec"
    for model, precision in of_precisions(models, options.precisions, may_build=by_trtexec):
        index = models.index(model)
        file = f"model-{index}.onnx"
        files |= renamed_files(model.path, file)
        images = images_for(model, options)
        for batch in options.batches:
            probe = make_probe(model, batch=batch, images=images, **limits)
            calls = _calls(probe, f"input-{index}-{batch}")
            for feeds, call in zip(probe.feeds, calls, strict=True):
                files |= {one.file: feeds[one.name].tobytes() for one in call}
            for threads in (None,) if by_trtexec else options.threads:
                case = model, runner, precision, batch, threads
                cases.append(EdgeCase(*case, file, probe, calls))
    return cases, files


def _calls(probe: Probe, stem: str) -> Calls:
    return [
        [
            SentInput(one.name, one.shape, one.dtype, f"{stem}-{call}-{n}.bin")
            for n, one in enumerate(probe.inputs)
        ]
        for call in range(len(probe.feeds))
    ]


class Job(ABC):
    """Cases that one program measures on the device.

    Args:
        files: Everything that is sent; subclasses add `steps`, which lists what to do.
        builder: What decides a build besides the models and inputs.
        refusals: Models that the program cannot take; `follow` adds the cases that failed.
    """

    computes: str  # row of tolerances for fp32 arithmetic

    def __init__(
        self,
        cases: list[EdgeCase],
        files: Files,
        options: BenchOptions,
        *,
        builder: object = None,
        refusals: Sequence[Refusal] = (),
    ) -> None:
        self.cases, self.files, self.options = cases, dict(files), options
        self.refusals = list(refusals)
        identity = hashlib.sha256(repr(builder).encode())
        for name, item in sorted(files.items()):
            if isinstance(item, Path):
                sha256 = file_sha256(item)
            else:
                sha256 = hashlib.sha256(item).hexdigest()
            identity.update(f"{name} {sha256}".encode())
        # Name of its folder on the device: the same for the same work.
        self.id = identity.hexdigest()[:32]

    @abstractmethod
    def follow(self, link: Link) -> list[Measurement]:
        """Follow the steps on the device.

        Raises:
            WorkFailed: A step failed, or the connection broke.
            WrongOutputs: A case's outputs differ from its ONNX file's.
            DeviceError, ValueError: A result that cannot be read.
        """

    def judged(self, case: EdgeCase, calls: Sequence[Any]) -> Verification | str:
        """Compare outputs; for each call trtexec's export, as text or plain data."""
        try:
            got = [parse_outputs(one) if isinstance(one, str) else outputs_of(one) for one in calls]
        except ValueError:
            got = []
        return judge(
            case.name,
            case.probe,
            got,
            bound=loosest(case.precision, self.computes),
            where="on the measuring machine",
            few=True,
            unverified=self.options.unverified,
        )

    def record(
        self,
        case: EdgeCase,
        trace: Trace,
        execution: Execution,
        *,
        found: Verification | str,
        warnings: Sequence[str] = (),
        seconds: float | None = None,
    ) -> Measurement:
        """The record of a case; its throughput is that of `seconds`, or of the runs' sum."""
        notes, power = list(warnings), execution.telemetry
        if power is not None and power.samples < _FEW_SAMPLES:
            notes.append(f"power rests on {power.samples} samples only; a longer --duration")
        return measurement_of(
            case,
            trace,
            execution,
            self.options,
            found=found,
            warnings=notes,
            where=" on the device",
            seconds=seconds,
        )


@dataclass(frozen=True)
class Power:
    """What the board did while it worked.

    Args:
        lines: What tegrastats printed, where there is one.
        started: When the board had been idle long enough.
        overcurrent: Over-current events during the work, by counter.
    """

    lines: Lines
    started: float
    overcurrent: dict[str, int]

    @classmethod
    def parse(cls, text: str) -> Power:
        """From the script's file `power`.

        Raises:
            ValueError: It is none.
        """
        lines = stamped(text.splitlines())
        [started] = [second for second, line in lines if line == "started"]
        counts: dict[str, list[int]] = defaultdict(list)
        for _second, line in lines:
            if match := re.fullmatch(r"(oc\w+_event_cnt) (\d{1,9})", line):
                counts[match[1]].append(int(match[2]))
        events = {name: seen[-1] - seen[0] for name, seen in counts.items()}
        return cls(lines, started, events)

    def telemetry(self, spans: Spans, throughput: float) -> Telemetry | None:
        """Telemetry within these spans."""
        return telemetry_of(
            [one for one in self.lines if any(begin <= one[0] <= end for begin, end in spans)],
            throughput_ips=throughput,
            idle=[one for one in self.lines if one[0] < self.started],
            overcurrent=self.overcurrent,
        )


def one_a_line(texts: Sequence[str]) -> bytes:
    """A file of steps or arguments."""
    return "".join(f"{text}\n" for text in texts).encode()
