"""Loading a TensorRT engine and running it, on the GPU it was built for.

An engine is checked against its sidecar before any byte of it is deserialised.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from ._trt_compat import Flavour, choose, gpu_name, select_for_polygraphy
from .errors import ConversionFailed, ExportError
from .network_files import require_usual_size
from .runners import Outputs, Runner, onnx_runner
from .sidecar import Sidecar, read_sidecar, require_built_here, require_own_engine
from .verify import Verification, require, verify

__all__ = ["engine_runner", "load_engine", "verify_engine"]


def load_engine(
    path: str | Path, *, onnx_path: str | Path | None = None, built_here: Path | None = None
) -> Any:
    """Deserialise an engine.

    Args:
        path: The engine; its sidecar must be beside it.
        onnx_path: When given, the engine must have been built from exactly this file.
        built_here: When given, the folder in which `remember_engine` must have noted the engine.

    Returns:
        `trt.ICudaEngine` of the flavour that built it.

    Raises:
        ExportError: No GPU, a missing, damaged or foreign engine (see `require_own_engine`), or one
            that was built elsewhere.
        MissingPackageError: The flavour that built it is not installed.
        ConversionFailed: TensorRT refuses the engine although its sidecar agrees.
    """
    return _load(path, onnx_path, built_here)[0]


def engine_runner(
    path: str | Path, *, onnx_path: str | Path | None = None, built_here: Path | None = None
) -> Runner:
    """Run an engine through Polygraphy; images beyond its largest batch go in several calls.

    Raises:
        ExportError, MissingPackageError, ConversionFailed: As `load_engine`.
    """
    engine, flavour, sidecar = _load(path, onnx_path, built_here)
    select_for_polygraphy(flavour)
    from polygraphy.backend.trt import TrtRunner

    runner = TrtRunner(engine)
    runner.activate()
    ((feed, expected),) = runner.get_input_metadata().items()
    dtype = np.dtype(expected.dtype.name)
    largest = sidecar.profile["max"][0]

    def run(images: np.ndarray) -> Outputs:
        parts: list[Outputs] = []
        for start in range(0, len(images), largest):
            batch = np.ascontiguousarray(images[start : start + largest], dtype)
            outputs = runner.infer({feed: batch})
            # Polygraphy hands out its own buffers, which the next call overwrites.
            parts.append({name: np.array(value, np.float32) for name, value in outputs.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return run


def verify_engine(
    onnx_path: str | Path, path: str | Path, images: np.ndarray
) -> Verification | None:
    """Run the same images through an engine and its ONNX file: an engine can compute wrongly too.

    Args:
        onnx_path: The file the engine was built from.
        path: The engine; put aside when it does not agree.
        images: What the network takes, [N, ...].

    Returns:
        The comparison, or None where no GPU is at hand or the engine was not built for this one.

    Raises:
        VerificationFailed: The engine gives other numbers.
    """
    sidecar, here = read_sidecar(path), gpu_name()
    if here is None or not (sidecar.gpu or any(f"SM {t})" in here for t in sidecar.targets)):
        return None
    verification = verify(
        onnx_runner(onnx_path),
        engine_runner(path, onnx_path=onnx_path),
        images,
        precision=sidecar.precision,
    )
    require(verification, path)
    return verification


def _load(
    path: str | Path, onnx_path: str | Path | None, built_here: Path | None
) -> tuple[Any, Flavour, Sidecar]:
    """The engine, made from the very bytes that were checked; what loads it; its sidecar."""
    flavour = choose(read_sidecar(path).backend, what="running an engine")
    require_usual_size(path)
    content = Path(path).read_bytes()
    sidecar = require_own_engine(path, content, flavour, onnx_path=onnx_path)
    if built_here is not None:
        require_built_here(path, content, built_here)
    if gpu_name() is None:
        raise ExportError(
            f"engine '{path}' can only run on an NVIDIA GPU, and there is none here",
            hint="copy the ONNX file to the device and build there",
        )
    trt = importlib.import_module(flavour.name)
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(content)
    if engine is None:
        raise ConversionFailed(
            f"{flavour.name} {flavour.version} refuses the engine '{path}'",
            hint="build it again here; its reason was printed above",
        )
    return engine, flavour, sidecar
