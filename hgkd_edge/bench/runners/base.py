"""What a runner is: it opens a case, and an opened case can be run again and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from hgkd_edge.bench.models import ModelFile
from hgkd_edge.bench.records import Refusal

__all__ = ["Case", "Opened", "Runner"]


@dataclass(frozen=True)
class Case:
    """One model at one batch size, thread count and copy rule.

    Args:
        model: The file.
        feeds: Input name -> array of the batch to run.
        batch: B.
        threads: Threads inside an operator; None leaves it to the runtime.
        copies: "in": input from, and output to, ordinary host memory within the time.
            "out": both already where the runtime wants them.
        torch_module: The module a torch runner measures in place of the file.
        trust_engine: Load an engine although it was not built on this machine: it is machine code.
    """

    model: ModelFile
    feeds: dict[str, np.ndarray] = field(repr=False)
    batch: int
    threads: int | None
    copies: Literal["in", "out"]
    torch_module: Any = field(default=None, repr=False)
    trust_engine: bool = False


@dataclass
class Opened:
    """A case ready to run.

    Args:
        run: One whole inference; returns when the outputs can be read.
        outputs: What the thing that `run` times computes for any feeds of the case's shapes: output
            name -> array. None where it is the reference itself.
        computes: Precision of the arithmetic where it is not the file's: `tf32`, `bf16`, ...
        load_ms: From file to ready, without building.
        build_ms: Time in an engine builder or compiler, where there is one.
        engine_mb: Size of what it built.
        threads: Threads actually used, where the runtime tells.
        details: Settings worth repeating (providers, streams, precision hints).
        warnings: What makes its figures something else than they seem.
        close: Frees what the case holds.
    """

    run: Callable[[], object]
    load_ms: float
    outputs: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None
    computes: str | None = None
    build_ms: float | None = None
    engine_mb: float | None = None
    threads: int | None = None
    details: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    close: Callable[[], None] = lambda: None


class Runner(Protocol):
    """One runtime."""

    name: str
    backend: str
    opens: str
    """Suffix of the files that it is deployed with: `.onnx`, `.xml` or `.plan`."""
    uses_threads: bool
    """Whether a thread sweep means anything to it."""
    needs_torch: bool
    """Whether it measures a PyTorch module in place of the file."""

    def refusal(self) -> Refusal | None:
        """None when it can run here, else the reason and the mend."""
        ...

    def version(self) -> str:
        """Version of the runtime."""
        ...

    def open(self, case: Case) -> Opened:
        """Load the case.

        Raises:
            DeviceError: The runtime refuses the model.
        """
        ...
