"""What `trt_build` asks of its worker, and what that reports: JSON between two processes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import NamedTuple

from ._trt_compat import Flavor

__all__ = ["BuildRequest", "Built", "Event", "Failed", "Shapes", "Step", "event_of", "line_of"]


class Shapes(NamedTuple):
    """An input, and the shapes that an engine takes: smallest, the one it is tuned for, largest."""

    name: str
    min: list[int]
    opt: list[int]
    max: list[int]


@dataclass(frozen=True)
class BuildRequest:
    """An engine to build; options as for `trt_build.build_engine`.

    Attributes:
        flavor: The TensorRT that builds it.
        precision: Precision of the ONNX file.
        onnx: The ONNX file.
        output: Where the engine is written.
        shapes: Of the input.
        timing_cache: File of tactic timings; None: none is kept.
    """

    flavor: Flavor
    precision: str
    onnx: str
    output: str
    shapes: Shapes
    workspace_mib: int | None = None
    timing_cache: str | None = None
    compute_capabilities: list[str] | None = None
    dla: int | None = None

    def to_json(self) -> str:
        """The request as the worker reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> BuildRequest:
        """The request that `to_json` wrote."""
        fields = json.loads(text)
        parts = {"flavor": Flavor(**fields["flavor"]), "shapes": Shapes(*fields["shapes"])}
        return cls(**{**fields, **parts})


@dataclass(frozen=True)
class Step:
    """Progress: step `step` of `steps` of a phase."""

    phase: str
    step: int
    steps: int


@dataclass(frozen=True)
class Built:
    """The engine is written: for the GPU here, or for the compute capabilities in `targets`."""

    gpu: str | None
    targets: list[str]


@dataclass(frozen=True)
class Failed:
    """The engine cannot be built; the fields are those of a `UserError`."""

    message: str
    hint: str
    exit_code: int


Event = Step | Built | Failed
_KINDS: dict[str, type[Event]] = {"progress": Step, "done": Built, "error": Failed}


def line_of(event: Event) -> str:
    """An event as one line of JSON."""
    (name,) = (name for name, kind in _KINDS.items() if kind is type(event))
    return json.dumps({"event": name, **asdict(event)})


def event_of(line: str) -> Event:
    """The event that `line_of` wrote."""
    fields = json.loads(line)
    return _KINDS[fields.pop("event")](**fields)
