"""trtexec: flags by version, its log, and its exported times.

Flags follow NVIDIA/TensorRT `samples/common/sampleOptions.cpp`; the exported trace follows
`sampleReporting.cpp` (`exportJSONTrace`). What changed between versions:

    8.x - 10.x   copies inside the time, no CUDA graph, no spin-wait; --fp16, --int8
    10.x on      --stronglyTyped takes the precision from the ONNX
    11.x         copies outside, CUDA graph and spin-wait on; precision only from the ONNX

So every flag that matters is set, and the settings that trtexec prints are read back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hgkd_edge.errors import DeviceError
from hgkd_edge.parsing import parse_json

__all__ = [
    "Engine",
    "Log",
    "Times",
    "Trtexec",
    "outputs_of",
    "parse_log",
    "parse_outputs",
    "parse_times",
    "settings_warnings",
]

_BANNER = re.compile(r"\[TensorRT v(\d+)(?:\.(\d+)\.(\d+)(?:\.\d+)*)?\]")
_SUMMARY = re.compile(r"\] (Latency|GPU Compute Time): (.*)")
_MEDIAN = re.compile(r"median = ([\d.e+-]+) ms")
_SETTING = re.compile(r"\] (Data transfers|Spin-wait|CUDA Graph): (\w+)")
_BUILT = re.compile(r"Engine built in ([\d.]+) sec")
_LOADED = re.compile(r"Engine deserialized in ([\d.]+) sec")
_SEPARATOR = re.compile(r"[:,'\"\s]")
_WARMED = re.compile(r"Warmup completed (\d+) queries over ([\d.]+) ms")


@dataclass(frozen=True)
class Trtexec:
    """A trtexec on some device: version and the flags its help names."""

    version: tuple[int, int, int]
    flags: frozenset[str]

    @classmethod
    def from_help(cls, text: str) -> Trtexec:
        """Read the banner and the flags of `trtexec --help`.

        The banner packs the version: `v8602` is 8.6.2, `v100300` is 10.3.0, `v8.6.1` is itself.

        Raises:
            DeviceError: There is no banner: this is not NVIDIA's trtexec, or it cannot start.
        """
        match = _BANNER.search(text)
        if match is None:
            tail = (text.strip().splitlines() or ["no output"])[-1][:160]
            raise DeviceError(
                f"trtexec on the device does not report its version: {tail}",
                hint="run trtexec --help on the device; its libraries may be missing",
            )
        if match[2] is not None:
            version = (int(match[1]), int(match[2]), int(match[3]))
        else:
            packed = int(match[1])
            # Four digits hold major * 1000 + minor * 100 + patch, six major * 10000 + ...
            version = (
                (packed // 1000, packed // 100 % 10, packed % 100)
                if packed < 10000
                else (packed // 10000, packed // 100 % 100, packed % 100)
            )
        return cls(version, frozenset(re.findall(r"--\w+", text)))

    @property
    def name(self) -> str:
        """`10.3.0`."""
        return ".".join(map(str, self.version))

    def supported(self, *flags: str) -> list[str]:
        """The given flags (`--x` or `--x=value`) that its help names."""
        return [flag for flag in flags if flag.split("=")[0] in self.flags]


@dataclass(frozen=True)
class Engine:
    """An engine on the device, and the arguments with which trtexec builds and runs it.

    Args:
        onnx, plan: Files of the network and of the engine.
        shapes: Input name -> shape; min = opt = max.
        dynamic: Whether the graph has free axes; a fixed graph takes no shapes.

    Raises:
        DeviceError: The name of an input contains a separator; trtexec would parse another name.
    """

    tool: Trtexec
    onnx: str
    plan: str
    shapes: Mapping[str, Sequence[int]]
    dynamic: bool

    def __post_init__(self) -> None:
        for name in self.shapes:
            if _SEPARATOR.search(name):
                raise DeviceError(
                    f"trtexec cannot take an input named '{name}'",
                    hint="export the model with a plain input name",
                )

    def build(self, held: str, wanted: str) -> list[str]:
        """Build it in the wanted precision from a file that holds fp32, fp16 or int8 (Q/DQ).

        Raises:
            DeviceError: This version cannot build the precision from this ONNX file.
        """
        kinds = ("min", "opt", "max") if self.dynamic else ()
        return [
            f"--onnx={self.onnx}",
            f"--saveEngine={self.plan}",
            *(f"--{kind}Shapes={self._shapes}" for kind in kinds),
            *_precision_flags(self.tool, held, wanted),
            *self.tool.supported("--timingCacheFile=timing.cache"),
            # 8.5 called it --buildOnly, 8.6 renamed it; older ones also measure briefly, which is
            # harmless.
            *(self.tool.supported("--skipInference") or self.tool.supported("--buildOnly")),
        ]

    def compute(self, inputs: Mapping[str, str], outputs: str) -> list[str]:
        """Run it once, as it will be measured, on these files of inputs; export its outputs."""
        once = ["--warmUp=0", "--duration=0", "--iterations=1", f"--exportOutput={outputs}"]
        return [*self._run(inputs, "in"), *once]

    def measure(
        self,
        inputs: Mapping[str, str],
        times: str,
        *,
        copies: str,
        warmup_ms: int,
        duration_s: float,
        count: int | None,
    ) -> list[str]:
        """Measure it on these files of inputs; export the times of each run.

        With copies "in" a run is H2D + compute + D2H, with "out" it is compute. trtexec takes whole
        seconds, or a count of runs instead.
        """
        seconds, runs = (0, count) if count else (max(1, round(duration_s)), 10)
        length = [f"--duration={seconds}", f"--iterations={runs}"]
        return [
            *self._run(inputs, copies), f"--warmUp={warmup_ms}", *length, f"--exportTimes={times}"
        ]  # fmt: skip

    @property
    def _shapes(self) -> str:
        """`name:1x3x224x224,...` as trtexec reads it."""
        sizes = {name: "x".join(map(str, shape)) for name, shape in self.shapes.items()}
        return ",".join(f"{name}:{size}" for name, size in sizes.items())

    def _run(self, inputs: Mapping[str, str], copies: str) -> list[str]:
        """Inputs, CUDA graph, spin-wait and copies: every default that differs by version, set."""
        files = ",".join(f"{name}:{file}" for name, file in inputs.items())
        arguments = [f"--loadEngine={self.plan}", f"--loadInputs={files}"]
        if self.dynamic:
            arguments.append(f"--shapes={self._shapes}")
        if self.tool.version >= (11,):
            # CUDA graph and spin-wait are on by default; copies are not.
            return arguments + (["--includeDataTransfers"] if copies == "in" else [])
        arguments += ["--useCudaGraph", "--useSpinWait"]
        return arguments + (["--noDataTransfers"] if copies == "out" else [])


def _precision_flags(tool: Trtexec, held: str, wanted: str) -> list[str]:
    if wanted == "int8" and held != "int8":
        raise DeviceError(
            "int8 needs a quantized ONNX: without calibration trtexec would use placeholder ranges",
            hint="hgkd-edge export --onnx --precision int8",
        )
    if tool.version >= (11,):
        if wanted != held:
            raise DeviceError(
                f"TensorRT {tool.name} takes the precision from the ONNX, which is {held}, not "
                f"{wanted}",
                hint=f"hgkd-edge export --onnx --precision {wanted}",
            )
        return []
    if wanted == held != "fp32" and tool.version >= (10,):
        return tool.supported("--stronglyTyped")
    return {"fp16": ["--fp16"], "int8": ["--int8", "--fp16"]}.get(wanted, [])


@dataclass(frozen=True)
class Log:
    """A parsed trtexec log: medians in ms by figure, effective settings, costs."""

    medians_ms: dict[str, float]
    settings: dict[str, str]
    build_s: float | None
    load_s: float | None
    warmup_runs: int | None
    warnings: list[str]


def parse_log(lines: Sequence[str]) -> Log:
    """Read a log; whatever is missing stays None.

    Raises:
        ValueError: A figure is no finite number.
    """
    text = "\n".join(lines)
    summaries = [(name, _MEDIAN.search(rest)) for name, rest in _SUMMARY.findall(text)]
    built, loaded, warmed = _BUILT.search(text), _LOADED.search(text), _WARMED.search(text)
    return Log(
        medians_ms={name: _finite(median[1]) for name, median in summaries if median},
        settings=dict(_SETTING.findall(text)),
        build_s=_finite(built[1]) if built else None,
        load_s=_finite(loaded[1]) if loaded else None,
        warmup_runs=int(warmed[1]) if warmed else None,
        warnings=[line.split("[W] ", 1)[1].strip() for line in lines if "[W] * " in line],
    )


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"'{text[:20]}' is not a finite number")
    return value


@dataclass(frozen=True)
class Times:
    """The exported trace: `ms` f64[n], and queries per second over the whole of it."""

    ms: np.ndarray
    queries_per_s: float


def parse_times(text: str | None, *, copies: str, warmup_ms: float) -> Times:
    """Read `--exportTimes`.

    TensorRT before 8.6 exports its warm-up runs too; as trtexec does itself, runs whose computation
    started before the end of the warm-up are skipped. Early ones (7, 8.0) call H2D and D2H "in" and
    "out".

    Raises:
        DeviceError: No file, not JSON (a truncated log), or no run after the warm-up.
    """
    try:
        trace: list[dict[str, Any]] = parse_json(text or "")
        runs = [run for run in trace if run["startComputeMs"] >= warmup_ms] or trace
        key = "latencyMs" if copies == "in" else "computeMs"
        ms = np.array([float(run[key]) for run in runs])
        begin, end = (
            ("startH2dMs", "endD2hMs") if "startH2dMs" in runs[0] else ("startInMs", "endOutMs")
        )
        span_ms = max(run[end] for run in runs) - min(run[begin] for run in runs)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise DeviceError(
            f"trtexec's exported times cannot be read ({type(error).__name__}: {error})",
            hint="the file may be cut off: check the free space on the device",
        ) from error
    if ms.size == 0 or not np.isfinite(ms).all() or (ms <= 0).any() or span_ms <= 0:
        raise DeviceError("trtexec exported no usable times", hint="give a longer --duration")
    return Times(ms=ms, queries_per_s=ms.size / span_ms * 1000)


def settings_warnings(log: Log, *, copies: str) -> list[str]:
    """The settings printed by trtexec that differ from the requested ones."""
    meant = {
        "Data transfers": "Enabled" if copies == "in" else "Disabled",
        "Spin-wait": "Enabled",
        "CUDA Graph": "Enabled",
    }
    return [
        f"trtexec ran with {name} {log.settings[name]}, not {wanted}"
        for name, wanted in meant.items()
        if name in log.settings and log.settings[name] != wanted
    ] + log.warnings


def parse_outputs(text: str) -> dict[str, np.ndarray]:
    """Output name -> f64 array, from `--exportOutput` (layout: `exportJSONOutput` in
    NVIDIA/TensorRT samples/common/sampleReporting.cpp).

    Values that are not finite are printed as `nan` and `inf`, which are not valid JSON.

    Raises:
        ValueError: Not of this layout.
    """
    text = re.sub(r"(?<=[\[\s,-])nan(?=[\s,\]])", "NaN", text)
    text = re.sub(r"(?<=[\[\s,-])inf(?=[\s,\]])", "Infinity", text).replace("-NaN", "NaN")
    return outputs_of(parse_json(text))


def outputs_of(entries: Any) -> dict[str, np.ndarray]:
    """The same from plain data.

    Raises:
        ValueError: Not of this layout.
    """
    found = {}
    try:
        for entry in entries:
            shape = [int(size) for size in entry["dimensions"].split("x")]
            found[entry["name"]] = np.array(entry["values"], dtype=np.float64).reshape(shape)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no exported outputs ({type(error).__name__}: {error})") from error
    return found
