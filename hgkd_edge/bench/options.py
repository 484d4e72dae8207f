"""Options of one `hgkd-edge bench` call. Plain data."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from hgkd_edge.bench.records import FedImages, Settings
from hgkd_edge.bench.timing import Plan
from hgkd_edge.errors import DeviceError

__all__ = [
    "DEVICES",
    "PRECISIONS",
    "AnyPath",
    "BenchOptions",
    "Progress",
    "RunBenchOptions",
    "parse_counts",
]

DEVICES = ("cpu", "cuda", "openvino", "jetson")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
MOST_ROUNDS, MOST_RUNS = 10_000, 10_000_000  # all times are kept in memory

AnyPath = str | os.PathLike[str]
Progress = Callable[[str, float], None]
"""Called with the current step and its completed fraction."""


@dataclass(frozen=True)
class RunBenchOptions:
    """How to measure: the options of `Run.bench`.

    Args:
        device: Where: this CPU, this GPU, OpenVINO here, or a Jetson (local, or `host`).
        runners: Names from `list_runners()`; empty means the device's defaults.
        host: `user@machine[:port]` of an edge device to measure over SSH.
        hosts: A YAML file that lists several hosts.
        batches: Batch sizes to sweep.
        threads: Thread counts to sweep on CPU runners; `None` is the runner's own choice.
        precisions: Keep only models of these precisions; on a Jetson with TensorRT <= 10 also the
            precision an FP32 model is built with.
        copies: Whether the time includes copying inputs and outputs.
        duration_s: Measured seconds per case.
        count: Measured runs per case instead of a duration.
        rounds: Interleaved visits per case.
        images: f32[N, 3, H, W] real images, already normalized; None takes those that export kept
            in the run folder (`export/images.npy`), else a fixed-seed tensor.
        out: Where bench.json goes; None means the run folder, or the model's folder.
        unverified: Measure even if the outputs differ from the ONNX file's.
        trust_engine: Load engines although they were not built on this machine.
        resume: Reuse a build that an earlier, interrupted session finished on the host.
        ssh_config: An OpenSSH configuration file to use in place of the user's.

    Raises:
        DeviceError: A value that measures nothing, or an unknown one.
    """

    device: str = "cpu"
    runners: Sequence[str] = ()
    host: str | None = None
    hosts: AnyPath | None = None
    batches: Sequence[int] = (1,)
    threads: Sequence[int | None] = (None,)
    precisions: Sequence[str] = ()
    copies: Literal["in", "out"] = "in"
    duration_s: float = 5.0
    count: int | None = None
    rounds: int = 5
    images: np.ndarray | None = field(default=None, repr=False)
    out: AnyPath | None = None
    unverified: bool = False
    trust_engine: bool = False
    resume: bool = False
    ssh_config: AnyPath | None = None

    def __post_init__(self) -> None:
        for option, value, known in (
            ("device", self.device, DEVICES),
            ("copies", self.copies, ("in", "out")),
            *(("precision", one, PRECISIONS) for one in self.precisions),
        ):
            if value not in known:
                raise DeviceError(
                    f"--{option} '{value}' is not known", hint=f"one of {', '.join(known)}"
                )
        counts = {"batch": self.batches, "threads": self.threads}
        for option, values in {**counts, "count": [self.count], "rounds": [self.rounds]}.items():
            wrong = [value for value in values if value is not None and value < 1]
            if wrong:
                raise DeviceError(f"--{option} {wrong[0]} measures nothing", hint="1 or more")
        for option, number, most in (
            ("rounds", self.rounds, MOST_ROUNDS),
            ("count", self.count, MOST_RUNS),
        ):
            if number is not None and number > most:
                raise DeviceError(f"--{option} {number:,} is too high", hint=f"{most:,} or less")
        if not 0 < self.duration_s < math.inf:
            raise DeviceError(
                f"--duration must be finite and above 0, not {self.duration_s:g}",
                hint="seconds, such as 5",
            )
        if self.host is not None and self.hosts is not None:
            raise DeviceError("--host and --hosts were both given", hint="give one of them")
        over_ssh = self.host is not None or self.hosts is not None
        if self.ssh_config is not None and not over_ssh:
            raise DeviceError("--ssh-config: only with --host or --hosts", hint="add --host")
        if self.resume and not (over_ssh or self.device == "jetson"):
            raise DeviceError(
                "--resume: only with --host, --hosts or --device jetson",
                hint="only engines are built and kept",
            )

    def plan(self) -> Plan:
        """How long and how to measure."""
        return Plan(duration_s=self.duration_s, count=self.count, rounds=self.rounds)


@dataclass(frozen=True)
class BenchOptions(RunBenchOptions):
    """What to measure, and how.

    Args:
        models: Run folders or .onnx files; empty means the latest run.
        load_torch: Run folder -> nn.Module, called only when a torch runner is asked for.
        images_kept: `images` are those that export kept; a model of another size is not fed them.

    Raises:
        DeviceError: A value that measures nothing, or an unknown one.
    """

    models: Sequence[Path] = ()
    load_torch: Callable[[Path], object] | None = field(default=None, repr=False)
    images_kept: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        # Users write names of files as strings.
        object.__setattr__(self, "models", tuple(map(Path, self.models)))

    def settings(self) -> Settings:
        """The record of the request in bench.json; images are named, not stored."""
        stated = {name: getattr(self, name) for name in Settings.model_fields}
        if self.images is not None:
            sha256 = hashlib.sha256(np.ascontiguousarray(self.images).tobytes()).hexdigest()
            stated["images"] = FedImages(shape=list(self.images.shape), sha256=sha256)
        return Settings(**stated)


def parse_counts(text: str, *, option: str) -> tuple[int, ...]:
    """`1,8` -> (1, 8).

    Raises:
        DeviceError: Not a comma-separated list of whole numbers from 1 up.
    """
    numbers = [re.fullmatch(r" *0*([1-9]\d{0,8}) *", part, re.ASCII) for part in text.split(",")]
    if not all(numbers):
        raise DeviceError(
            f"{option} '{text}' is not a list of whole numbers from 1 up",
            hint=f"such as {option} 1,8",
        )
    return tuple(dict.fromkeys(int(number[1]) for number in numbers if number))
