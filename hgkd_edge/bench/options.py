"""Options of one `hgkd-edge bench` call. Plain data."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hgkd_edge.errors import DeviceError
from hgkd_edge.parsing import parse_json

__all__ = ["DEVICES", "BenchOptions", "parse_counts"]

DEVICES = ("cpu", "cuda", "openvino", "jetson")


@dataclass(frozen=True)
class BenchOptions:
    """All options of a measurement.

    Args:
        models: Run folders or .onnx files; empty means the latest run.
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
        load_torch: Run folder -> nn.Module, called only when a torch runner is asked for.
    """

    models: tuple[Path, ...] = ()
    device: str = "cpu"
    runners: tuple[str, ...] = ()
    host: str | None = None
    hosts: Path | None = None
    batches: tuple[int, ...] = (1,)
    threads: tuple[int | None, ...] = (None,)
    precisions: tuple[str, ...] = ()
    copies: Literal["in", "out"] = "in"
    duration_s: float = 5.0
    count: int | None = None
    rounds: int = 5
    images: np.ndarray | None = field(default=None, repr=False)
    out: Path | None = None
    unverified: bool = False
    trust_engine: bool = False
    resume: bool = False
    ssh_config: Path | None = None
    load_torch: Callable[[Path], Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise DeviceError(
                f"--device '{self.device}' is not known", hint=f"one of {', '.join(DEVICES)}"
            )
        if self.copies not in ("in", "out"):
            raise DeviceError(
                f"--copies '{self.copies}' is not known", hint="in (counted) or out (not counted)"
            )
        if min(self.batches, default=0) < 1 or any(n is not None and n < 1 for n in self.threads):
            raise DeviceError("--batch and --threads take whole numbers from 1 up", hint="1,8")
        if self.duration_s <= 0:
            raise DeviceError(
                f"--duration {self.duration_s:g} measures nothing", hint="seconds, such as 5"
            )
        if self.count is not None and self.count < 1:
            raise DeviceError(f"--count {self.count} measures nothing", hint="1 or more")
        if self.rounds < 1:
            raise DeviceError(f"--rounds {self.rounds} measures nothing", hint="1 or more")
        for precision in self.precisions:
            if precision not in ("fp32", "fp16", "bf16", "int8"):
                raise DeviceError(
                    f"--precision '{precision}' is not known", hint="fp32, fp16, bf16 or int8"
                )
        if self.host is not None and self.hosts is not None:
            raise DeviceError("--host and --hosts were both given", hint="give one of them")
        if self.images is not None and (
            self.images.ndim != 4 or self.images.shape[0] == 0 or self.images.dtype != np.float32
        ):
            raise DeviceError(
                f"images are {self.images.dtype}{list(self.images.shape)}",
                hint="give f32[N, 3, H, W] with at least one image",
            )

    def settings(self) -> dict[str, Any]:
        """The record of the request in bench.json; images are named, not stored."""
        kept = {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if one.name not in ("out", "ssh_config", "load_torch")
        }
        if self.images is not None:
            content = np.ascontiguousarray(self.images).tobytes()
            kept["images"] = {
                "shape": self.images.shape,
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        return parse_json(json.dumps(kept, default=str))


def parse_counts(text: str, *, option: str) -> tuple[int, ...]:
    """`1,8` -> (1, 8).

    Raises:
        DeviceError: Not a comma-separated list of whole numbers from 1 up.
    """
    numbers = [re.fullmatch(r" *(\d{1,9}) *", part, re.ASCII) for part in text.split(",")]
    counts = tuple(int(number[1]) for number in numbers if number) if all(numbers) else ()
    if not counts or min(counts) < 1:
        raise DeviceError(
            f"{option} '{text}' is not a list of whole numbers from 1 up",
            hint=f"such as {option} 1,8",
        )
    return tuple(dict.fromkeys(counts))
