"""The content of `bench.json`: a versioned record with everything needed to repeat a measurement.

One file holds one *session* per target (this CPU, OpenVINO, one Jetson, ...); measuring a target
again replaces its session and leaves the others. Times are milliseconds, sizes MiB, power watts.
The documentation's page of `bench.json` is made from these classes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from hgkd_edge.errors import RunError, UserError
from hgkd_edge.files import atomic_write, remove_leftovers
from hgkd_edge.parsing import MAX_RECORD_BYTES, brief, parse_json, read_text

__all__ = [
    "SCHEMA",
    "SCHEMA_VERSION",
    "BenchFile",
    "FedImages",
    "InputInfo",
    "Latency",
    "Machine",
    "Measurement",
    "ModelInfo",
    "Noise",
    "Ratio",
    "Record",
    "Refusal",
    "Session",
    "Settings",
    "Telemetry",
    "Verification",
    "Warmup",
    "load_bench",
    "save_session",
]

SCHEMA: Literal["hgkd-edge.bench"] = "hgkd-edge.bench"
SCHEMA_VERSION: Literal[1] = 1


class Record(BaseModel):
    """Part of a record."""

    # Unknown keys are rejected, so that a misspelled field fails in a test, not in a reader.
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Latency(Record):
    """Distribution of single-inference times in ms; `mean_ci95` by block bootstrap."""

    count: int
    mean: float
    mean_ci95: tuple[float, float]
    std: float
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class Warmup(Record):
    """Runs before measuring; `stable` is False when the limit came before the times settled."""

    runs: int
    seconds: float
    stable: bool


class Noise(Record):
    """`spread` = interquartile range / median; `drift` = range of the rounds' medians / median."""

    spread: float
    drift: float
    noisy: bool


class Ratio(Record):
    """Time of this case over that of case `to`, round by round: median, lowest, highest."""

    to: str
    median: float
    low: float
    high: float


class InputInfo(Record):
    """One input as it was fed. `source`: real images of the caller, or a fixed-seed tensor."""

    name: str
    shape: list[int]
    dtype: str
    source: Literal["images", "synthetic"]
    seed: int | None = None


class ModelInfo(Record):
    """One model file; `precision` is read from its tensors, not from its name."""

    label: str
    path: str
    sha256: str
    size_mb: float
    precision: str
    opset: int | None = None
    metadata: dict[str, str] = Field(default_factory=dict)


class Rail(Record):
    """Power of one rail in watts over the measured window."""

    mean_w: float
    peak_w: float


class Telemetry(Record):
    """Telemetry of the board during the measured runs (never during build or load).

    `total_rail` names the rail(s) taken as the board's total. Energy per image = mean total power /
    throughput; `idle_w` is the same total just before, with nothing running.
    """

    source: Literal["tegrastats", "ina3221"]  # the latter in files of earlier versions
    samples: int
    rejected_lines: int
    interval_ms: float
    rails: dict[str, Rail]
    total_rail: str | None
    total_mean_w: float | None
    total_peak_w: float | None
    idle_w: float | None
    energy_per_image_mj: float | None
    gpu_mhz: dict[str, float] | None
    emc_mhz: dict[str, float] | None
    gpu_load_percent: float | None
    temperature_max_c: dict[str, float]
    ram_peak_mb: float | None
    throttled: bool
    throttle_reasons: list[str]


class Verification(Record):
    """Outputs on the device against those of `reference` for the same images, before measuring.

    `bound` names the precision whose tolerance applied; an error of None is not finite, or the
    outputs could not be read at all.
    """

    images: int
    source: Literal["images", "synthetic"]
    reference: str
    bound: str
    most_relative_error: float | None
    least_cosine: float
    relative_error: float | None
    cosine: float | None
    top1: float | None
    passed: bool


class Measurement(Record):
    """One case: a model in one runner at one batch size and thread count."""

    kind: Literal["measurement"] = "measurement"
    case: str
    model: str
    runner: str
    runner_version: str
    backend: str
    precision: str
    batch: int
    threads: int | None
    copies: Literal["in", "out"]
    inputs: list[InputInfo]
    latency_ms: Latency
    throughput_ips: float
    first_inference_ms: float | None
    load_ms: float | None
    build_ms: float | None
    host_memory_mb: float | None
    engine_mb: float | None
    warmup: Warmup
    measured_s: float
    rounds_p50_ms: list[float]
    noise: Noise
    ratio: Ratio | None = None
    telemetry: Telemetry | None = None
    verification: Verification | None = None
    details: dict[str, JsonValue] = Field(default_factory=dict)
    commands: list[list[str]] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)

    @property
    def computed_wrong(self) -> bool:
        """Whether its outputs were found to differ from those of its ONNX file."""
        return self.verification is not None and not self.verification.passed


class Refusal(Record):
    """A runner that cannot run here, or a host that could not be measured, and why."""

    name: str
    reason: str
    hint: str = ""

    @classmethod
    def of(cls, name: str, error: UserError) -> Refusal:
        """The refusal that an error explains."""
        return cls(name=name, reason=error.message, hint=error.hint)


class FedImages(Record):
    """The images of a request, by their digest."""

    shape: list[int]
    sha256: str


class Settings(Record):
    """What was asked for: the options of `bench`."""

    # Other versions have other options.
    model_config = ConfigDict(extra="allow", protected_namespaces=())

    models: list[Path] = []
    device: str = "cpu"
    runners: list[str] = []
    host: str | None = None
    hosts: Path | None = None
    batches: list[int] = [1]
    threads: list[int | None] = [None]
    precisions: list[str] = []
    copies: Literal["in", "out"] = "in"
    duration_s: float = 5.0
    count: int | None = None
    rounds: int = 5
    images: FedImages | None = None
    unverified: bool = False
    trust_engine: bool = False
    resume: bool = False


class Machine(Record):
    """The measuring machine; what is not known is not written.

    The second half is known of devices only. `is_jetson` is written for those measured by their own
    tools, a Jetson or another box.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=())  # of other versions

    machine: str | None = None
    cpu: str | None = None
    cpu_features: list[str] | None = None
    cores: int | None = None
    usable_cores: int | None = None
    cgroup_cpus: float | None = None
    governor: str | None = None
    memory_mb: int | None = None
    load_average_1min: float | None = None
    os: str | None = None
    python: str | None = None
    packages: dict[str, str] | None = None

    is_jetson: bool | None = None
    device: str | None = None
    device_id: str | None = None
    l4t: str | None = None
    jetpack: str | None = None
    trtexec: str | None = None
    power_mode: str | None = None
    power_mode_id: int | None = None
    power_modes: list[str] | None = None
    clocks_locked: bool | None = None
    gpu_mhz: dict[str, float] | None = None
    temperatures_c: dict[str, float] | None = None

    @model_serializer(mode="wrap")
    def _known(self, serialize: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        return {key: value for key, value in serialize(self).items() if value is not None}


class Session(Record):
    """All measurements of one target, taken in one go."""

    target: str
    created: str
    tool_version: str
    settings: Settings
    environment: Machine
    models: list[ModelInfo]
    measurements: list[Measurement]
    refusals: list[Refusal] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)

    @property
    def is_remote(self) -> bool:
        """Whether a device was measured by its own tools, a Jetson or another box."""
        return self.environment.is_jetson is not None


class BenchFile(Record):
    """The whole of `bench.json`."""

    schema_name: Literal["hgkd-edge.bench"] = Field(default=SCHEMA, alias="schema")
    version: Literal[1] = SCHEMA_VERSION
    sessions: list[Session] = Field(default_factory=list)

    model_config = ConfigDict(extra="forbid", populate_by_name=True, protected_namespaces=())


def load_bench(path: Path) -> BenchFile:
    """Read a bench.json.

    Raises:
        RunError: The file is missing, not JSON, of another version, or not of this schema.
    """
    try:
        raw = parse_json(read_text(path, MAX_RECORD_BYTES))
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            raise ValueError("is not a bench.json of hgkd-edge")
        if raw.get("version") != SCHEMA_VERSION:
            found = brief(raw.get("version"))
            raise ValueError(f"has schema version {found}; this hgkd-edge reads {SCHEMA_VERSION}")
        return BenchFile.model_validate(raw)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"{path}: {reason}", hint="measure first: hgkd-edge bench") from error
    except json.JSONDecodeError as error:
        raise RunError(f"{path} is not JSON: {error}", hint="measure again") from error
    except ValueError as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise RunError(
            f"{path}: {reason}", hint="measure again, or use the hgkd-edge that wrote it"
        ) from error


def save_session(path: Path, session: Session) -> None:
    """Put `session` into the bench.json at `path`, atomically; other targets are kept."""
    earlier = load_bench(path).sessions if path.exists() else []
    kept = [one for one in earlier if one.target != session.target]
    text = BenchFile(sessions=[*kept, session]).model_dump_json(indent=2, by_alias=True)
    remove_leftovers(path.parent)  # of a session that was killed
    with atomic_write(path) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")
