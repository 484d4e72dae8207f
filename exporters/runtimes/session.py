"""The common interface of runtimes: an open network takes images and returns named outputs.

`verify` compares two runners, whatever their runtimes.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from ..errors import ExportError, MissingPackageError, UserError, reason_of

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Copies",
    "Details",
    "Feeds",
    "Input",
    "Options",
    "Outputs",
    "Runner",
    "Runtime",
    "Session",
    "Source",
    "in_batches",
    "ms_since",
    "running",
]

Feeds = Mapping[str, np.ndarray]
Outputs = dict[str, np.ndarray]
Source: TypeAlias = "str | Path | bytes | nn.Module"

Runner = Callable[[np.ndarray], Outputs]
"""Images f32[B, 3, H, W] (u8[B, H, W, 3] with baked preprocessing) -> name: f32[B, ...]."""

Copies = Literal["in", "out"]
"""`in`: input and outputs in ordinary host memory. `out`: both stay in the runtime's memory."""


@dataclass(frozen=True)
class Options:
    """How a network is opened.

    Attributes:
        shapes: Input name -> shape of every call; OpenVINO compiles for it, TensorRT checks it.
        threads: Threads inside an operator; None leaves it to the runtime.
        exact: OpenVINO computes in fp32, whatever its plugin prefers; False runs as deployed.
        names: Names of a PyTorch module's outputs.
        made_from: ONNX file that an engine must have been built from.
        built_here: Folder in which `remember_engine` must have recorded an engine: it is machine
            code.
        trust_engine: Load an engine wherever it was built.
    """

    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    threads: int | None = None
    exact: bool = True
    names: Sequence[str] = ()
    made_from: str | Path | None = None
    built_here: Path | None = None
    trust_engine: bool = False


@dataclass(frozen=True)
class Input:
    """The first input of a network; one call takes `least` to `most` images (None: any number)."""

    name: str
    dtype: np.dtype
    least: int = 1
    most: int | None = None


@dataclass(frozen=True)
class Details:
    """What a network runs with, and what opening it took.

    Attributes:
        load_ms: Milliseconds from file to ready, without `build_ms`.
        build_ms: Milliseconds in the runtime's compiler, where it has one.
        threads: Threads inside an operator, where the runtime reports them or was asked for them.
        computes: Precision of the arithmetic where it is not the file's: `tf32`, `bf16`, `fp16`.
        size_mb: MiB of the engine.
        settings: Execution providers, precision hints, ...
    """

    load_ms: float
    build_ms: float | None = None
    threads: int | None = None
    computes: str | None = None
    size_mb: float | None = None
    settings: Mapping[str, str | list[str]] = field(default_factory=dict)


class Session(ABC):
    """An open network.

    Attributes:
        runtime: Display name of the runtime.
        package: The package that runs it.
        details: Its settings and load times.
        metadata: The file's own metadata, by key.
    """

    runtime: str
    package: str
    details: Details
    metadata: Mapping[str, str] = {}

    @property
    def version(self) -> str:
        """Version of the package."""
        return version_of(self.package)

    @property
    @abstractmethod
    def input(self) -> Input:
        """The first input."""

    @abstractmethod
    def infer(self, feeds: Feeds) -> Outputs:
        """One call: inputs by name, as the network takes them -> outputs, as it gives them.

        Raises:
            ExportError: The network cannot be run on them.
        """

    @abstractmethod
    def bind(self, feeds: Feeds, copies: Copies) -> Callable[[], object]:
        """One inference of these inputs, to be timed; it returns when the outputs can be read."""

    def close(self) -> None:  # noqa: B027  most runtimes hold nothing that Python does not free
        """Free the network's resources."""

    def run(self, images: np.ndarray) -> Outputs:
        """Any number of images, cast to the network's type -> f32 outputs.

        Raises:
            ExportError: The network's batch is fixed, and this is no multiple of it; or it cannot
                be run on images of this size.
        """
        taken = self.input

        def call(part: np.ndarray) -> Outputs:
            outputs = self.infer({taken.name: np.ascontiguousarray(part, taken.dtype)})
            return {name: np.asarray(value, np.float32) for name, value in outputs.items()}

        return in_batches(call, taken.least, taken.most)(images)


@contextlib.contextmanager
def running(runtime: str, explain: Callable[[Exception], str] = reason_of) -> Iterator[None]:
    """A runtime's failure on inputs that do not fit is an error of the file.

    Args:
        runtime: Its name in the message.
        explain: One line from its exception.

    Raises:
        ExportError: The block failed, but not for lack of memory.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # the runtimes' exceptions have no common base
        raise ExportError(
            f"{runtime} cannot run the network on these inputs: {explain(error)}",
            hint="check the size of the images, or export the file again",
        ) from error


@dataclass(frozen=True)
class Runtime:
    """One way to run a network.

    Attributes:
        name: Its name in `bench --runner`.
        backend: Its name in `bench.json`.
        opens: Suffix of the files that it is deployed with.
        open: (source, options) -> session.
        packages: The packages it imports, its own first.
        extra: Extra of hgkd-edge that brings them.
        uses_threads: Whether `Options.threads` means anything to it.
        lacks: Checks installed packages: None where they can run here, else why not.
    """

    name: str
    backend: str
    opens: str
    open: Callable[..., Session]
    packages: tuple[str, ...]
    extra: str = ""
    uses_threads: bool = True
    lacks: Callable[[], UserError | None] = lambda: None

    def missing(self) -> UserError | None:
        """None where it can run, else the error that says why not."""
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                return MissingPackageError(self.name, package=package, extra=self.extra)
        return self.lacks()

    def version(self) -> str:
        """Version of the runtime."""
        return version_of(self.packages[0])


def in_batches(run: Runner, least: int, most: int | None) -> Runner:
    """A runner of any number of images, where one call takes `least` to `most` of them.

    Raises (when run):
        ExportError: The images do not divide into such calls.
    """
    if most is None:
        return run

    def run_parts(images: np.ndarray) -> Outputs:
        if 0 < len(images) % most < least:
            taken = most if least == most else f"{least} to {most}"
            raise ExportError(
                f"the network takes batches of {taken} only, not {len(images)} images",
                hint="export it with a dynamic batch",
            )
        parts = []
        for start in range(0, len(images), most):
            part = run(images[start : start + most])
            if "detections" in part:  # rows that start with the number of their image
                part["detections"][:, 0] += start
            parts.append(part)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return run_parts


def version_of(package: str) -> str:
    """Version of an installed package."""
    return str(importlib.import_module(package).__version__)


def ms_since(start: float) -> float:
    """Milliseconds since `perf_counter()` was `start`."""
    return (perf_counter() - start) * 1000
