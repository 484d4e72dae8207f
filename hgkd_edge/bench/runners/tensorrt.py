"""TensorRT and TensorRT-RTX through Polygraphy. Both need an NVIDIA GPU to run an engine."""

from __future__ import annotations

import ctypes.util
import importlib
import importlib.util
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Literal

import numpy as np

from exporters.runtimes.tensorrt import load_engine
from exporters.sidecar import read_sidecar
from exporters.trt_build import build_engine
from hgkd_edge.bench.records import Refusal
from hgkd_edge.bench.runners.base import Case, Opened
from hgkd_edge.errors import DeviceError, UserError
from hgkd_edge.files import engines_dir

__all__ = ["TensorRtRunner"]

_EXTRA = {"tensorrt": "trt", "tensorrt_rtx": "trt-rtx"}


class TensorRtRunner:
    """One of the two TensorRT packages.

    An engine that `export` made is loaded as it is. Where there is none, `exporters` builds one.

    Args:
        package: Which one.
    """

    opens = ".plan"
    uses_threads = False
    needs_torch = False

    def __init__(self, package: Literal["tensorrt", "tensorrt_rtx"]) -> None:
        self.package = package
        self.name = package.replace("_", "-")
        self.backend = "TensorRT" if package == "tensorrt" else "TensorRT-RTX"

    def refusal(self) -> Refusal | None:
        for needed in (self.package, "polygraphy"):
            if importlib.util.find_spec(needed) is None:
                return Refusal(
                    name=self.name,
                    reason=f"the package '{needed}' is not installed",
                    hint=f'pip install "hgkd-edge[{_EXTRA[self.package]}]"',
                )
        if not _has_nvidia_gpu():
            return Refusal(
                name=self.name,
                reason="no NVIDIA GPU here; engines can be built but not run",
                hint="measure on the device: hgkd-edge bench --device jetson --host user@jetson",
            )
        return None

    def version(self) -> str:
        return str(importlib.import_module(self.package).__version__)

    def open(self, case: Case) -> Opened:
        start = perf_counter()
        build_ms = None
        try:
            if case.model.source is not None:
                _require_fit(case, self.package)
                path = case.model.path
                engine, *_ = load_engine(
                    path,
                    onnx_path=case.model.source,
                    built_here=None if case.trust_engine else engines_dir(),
                )
            else:
                engine, build_ms = self._build(case)
        except UserError as error:
            raise DeviceError(error.message, hint=error.hint) from error
        runner = activate(engine, self.package)
        load_ms = (perf_counter() - start) * 1000 - (build_ms or 0.0)
        return Opened(
            run=_run(runner, case),
            load_ms=load_ms,
            build_ms=build_ms,
            # Polygraphy hands out its own buffers, which the next call overwrites.
            outputs=lambda feeds: {
                name: np.array(value) for name, value in runner.infer(feeds).items()
            },
            engine_mb=_engine_mb(engine),
            close=runner.deactivate,
        )

    def _build(self, case: Case) -> tuple[Any, float]:
        """An engine of an ONNX file that has no exported one, for exactly the measured batch."""
        with TemporaryDirectory(prefix="hgkd-edge-") as folder:
            built = build_engine(
                case.model.path,
                Path(folder) / "net.plan",
                backend=self.package,
                min_batch=case.batch,
                opt_batch=case.batch,
                max_batch=case.batch,
            )
            return load_engine(built.path, onnx_path=case.model.path)[0], built.seconds * 1000


def activate(engine: Any, package: str) -> Any:
    """Polygraphy's runner of an engine; it decides once per process which package to import."""
    from polygraphy import config

    wanted = package == "tensorrt_rtx"
    if "polygraphy.backend.trt" in sys.modules and wanted != config.USE_TENSORRT_RTX:
        raise DeviceError(
            "TensorRT and TensorRT-RTX cannot be measured in one process",
            hint="name one: --runner tensorrt or --runner tensorrt-rtx",
        )
    config.USE_TENSORRT_RTX = wanted
    from polygraphy.backend.trt import TrtRunner

    runner = TrtRunner(engine)
    runner.activate()
    return runner


def _require_fit(case: Case, package: str) -> None:
    """See that an exported engine is one of this package, and takes the measured batch.

    Raises:
        DeviceError: It is not, or does not.
    """
    sidecar = read_sidecar(case.model.path)
    if sidecar.backend != package:
        raise DeviceError(
            f"'{case.model.path}' was built by {sidecar.backend}",
            hint=f"--runner {sidecar.backend.replace('_', '-')}",
        )
    least, most = sidecar.profile["min"][0], sidecar.profile["max"][0]
    if not least <= case.batch <= most:
        raise DeviceError(
            f"'{case.model.path}' takes batches of {least} to {most}, not {case.batch}",
            hint=f"hgkd-edge export --trt --max-batch {case.batch}, or another --batch",
        )


def _run(runner: Any, case: Case) -> Any:
    """One inference; Polygraphy synchronises the stream before it returns."""
    if case.copies == "in":
        return lambda: runner.infer(case.feeds, check_inputs=False)
    from polygraphy.cuda import DeviceArray

    resident = {name: DeviceArray(array.shape, array.dtype) for name, array in case.feeds.items()}
    for name, array in case.feeds.items():
        resident[name].copy_from(array)
    views = {name: array.view() for name, array in resident.items()}
    return lambda _keep=resident: runner.infer(
        views, check_inputs=False, copy_outputs_to_host=False
    )


def _engine_mb(engine: Any) -> float | None:
    serialised = engine.serialize()
    return None if serialised is None else np.asarray(memoryview(serialised)).nbytes / 2**20


def _has_nvidia_gpu() -> bool:
    """A driver library and a device node; no CUDA context is made for the asking."""
    nodes = (Path("/dev/nvidia0"), Path("/dev/nvhost-gpu"), Path("/dev/dxg"))
    return ctypes.util.find_library("cuda") is not None and any(node.exists() for node in nodes)
