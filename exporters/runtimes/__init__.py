"""One way to open a network, whatever runs it: `open(path).run(images)`.

pytorch.py    PyTorch, eager and compiled: a module
ort.py        ONNX Runtime on CPU, CUDA, TensorRT and OpenVINO: .onnx, or its bytes
openvino.py   OpenVINO on the CPU: .xml, or .onnx
tensorrt.py   TensorRT and TensorRT-RTX: .plan and .engine

`verify`, `evaluate`, `predict`, `export` and `bench` run networks only through this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ExportError
from . import openvino, ort, pytorch, tensorrt
from .session import (
    Copies,
    Details,
    Feeds,
    Input,
    Options,
    Outputs,
    Runner,
    Runtime,
    Session,
    Source,
)

__all__ = [
    "RUNTIMES",
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
    "open",
]

RUNTIMES: dict[str, Runtime] = {
    one.name: one
    for one in (*ort.RUNTIMES, *openvino.RUNTIMES, *tensorrt.RUNTIMES, *pytorch.RUNTIMES)
}
_OPENERS: dict[str, Callable[[Any, Options], Session]] = {
    ".onnx": ort.OrtSession,
    ".xml": openvino.OpenVinoSession,
    ".plan": tensorrt.TensorRtSession,
    ".engine": tensorrt.TensorRtSession,
}


def open(
    source: Source,
    *,
    runtime: str | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int | None = None,
    exact: bool = True,
    names: Sequence[str] = (),
    made_from: str | Path | None = None,
    built_here: Path | None = None,
    trust_engine: bool = False,
) -> Session:
    """Open a network.

    Args:
        source: `.onnx`, its bytes, `.xml`, `.plan`, `.engine`, or a PyTorch module.
        runtime: A name of `RUNTIMES`; None takes the one that the file was made for.
        shapes, threads, exact, names, made_from, built_here, trust_engine: See `Options`.

    Raises:
        ExportError: There is no such file, it is damaged, or it does not fit.
        MissingPackageError: Its runtime is not installed.
        ConversionFailed: Its runtime refuses it.

    Example:
        >>> session = open("resnet18.onnx", threads=1)
        >>> session.run(images)["logits"]  # f32[B, K]
    """
    options = Options(shapes or {}, threads, exact, names, made_from, built_here, trust_engine)
    if runtime is not None:
        return RUNTIMES[runtime].open(source, options)
    if isinstance(source, bytes):
        return ort.OrtSession(source, options)
    if not isinstance(source, (str, Path)):
        return pytorch.TorchSession(source, options)
    opener = _OPENERS.get(Path(source).suffix)
    if opener is None:
        raise ExportError(
            f"'{source}' is not a model file", hint=f"name one of {', '.join(_OPENERS)}"
        )
    return opener(source, options)
