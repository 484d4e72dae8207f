"""The runners of this machine: the runtimes of `exporters`, by their names in --runner."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from exporters.errors import UserError
from exporters.runtimes import RUNTIMES, Options, Runtime, Session
from hgkd_edge.bench.models import ModelFile
from hgkd_edge.bench.records import Refusal
from hgkd_edge.errors import DeviceError
from hgkd_edge.files import engines_dir

__all__ = ["file_of", "list_runners", "open_case", "runners_for"]

# Default runners of `--device`.
_OF_DEVICE = {
    "cpu": ("ort-cpu",),
    "cuda": ("ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx"),
    "openvino": ("openvino",),
}
_MODULE = ".safetensors"  # the file of a runner that measures a PyTorch module


def list_runners(names: Iterable[str] = ()) -> list[tuple[str, Refusal | None]]:
    """(name, None) for a runner that works here, (name, why not) for one that does not."""
    missing = {name: RUNTIMES[name].missing() for name in names or RUNTIMES}
    return [(name, Refusal.of(name, error) if error else None) for name, error in missing.items()]


def runners_for(device: str, names: tuple[str, ...]) -> tuple[list[Runtime], list[Refusal]]:
    """The runners to measure with (by default those of the device), and those that cannot run here.

    Raises:
        DeviceError: An unknown name, a named runner that cannot run, or none left for the device.
    """
    for name in names:
        if name not in RUNTIMES:
            raise DeviceError(f"runner '{name}' is not known", hint=f"one of {', '.join(RUNTIMES)}")
    found = list_runners(names or _OF_DEVICE[device])
    able = [RUNTIMES[name] for name, refusal in found if refusal is None]
    refused = [refusal for _name, refusal in found if refusal is not None]
    if names and refused:
        raise DeviceError(f"runner '{refused[0].name}': {refused[0].reason}", hint=refused[0].hint)
    if not able:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in refused)
        hints = next((one.hint for one in refused if one.hint), "")
        raise DeviceError(f"nothing can run on --device {device} here ({reasons})", hint=hints)
    return able, refused


def file_of(runner: Runtime) -> str:
    """Suffix of the files that it measures; a PyTorch module is measured for its ONNX file."""
    return ".onnx" if runner.opens == _MODULE else runner.opens


def open_case(
    runner: Runtime,
    model: ModelFile,
    feeds: dict[str, np.ndarray],
    *,
    threads: int | None,
    module: Any,
    trust_engine: bool,
) -> tuple[Session, float | None]:
    """A session for exactly these shapes, and the ms spent building an engine.

    TensorRT builds an engine from an ONNX file without an exported engine. Runners of modules open
    `module` instead of the file. An engine is machine code: one that was not built on this machine
    is loaded only with `trust_engine`.

    Raises:
        DeviceError: The runtime refuses the model.
    """
    shapes = {name: array.shape for name, array in feeds.items()}
    try:
        if runner.opens == _MODULE:
            return runner.open(_placed(module, runner, model), Options(shapes, threads)), None
        if runner.opens == ".plan" and model.source is None:
            with TemporaryDirectory(prefix="hgkd-edge-") as folder:
                batch = len(next(iter(feeds.values())))
                engine, build_ms = _build(runner, model, Path(folder), batch)
                options = Options(shapes, made_from=model.path, trust_engine=True)
                return runner.open(engine, options), build_ms
        options = Options(
            shapes,
            threads,
            exact=False,
            made_from=model.source,
            built_here=engines_dir(),
            trust_engine=trust_engine,
        )
        return runner.open(model.path, options), None
    except UserError as error:
        raise DeviceError(error.message, hint=error.hint) from error


def _build(runner: Runtime, model: ModelFile, folder: Path, batch: int) -> tuple[Path, float]:
    from exporters.trt_build import build_engine

    built = build_engine(
        model.path,
        folder / "net.plan",
        backend=runner.packages[0],
        min_batch=batch,
        opt_batch=batch,
        max_batch=batch,
    )
    return built.path, built.seconds * 1000


def _placed(module: Any, runner: Runtime, model: ModelFile) -> Any:
    """The module, on the GPU where there is one."""
    if module is None:
        raise DeviceError(
            f"runner '{runner.name}' has no PyTorch module for '{model.label}'",
            hint="give a run folder, whose backbone it can load, or another --runner",
        )
    import torch

    return module.to("cuda" if torch.cuda.is_available() else "cpu")
