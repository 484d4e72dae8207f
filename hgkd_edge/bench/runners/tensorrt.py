"""TensorRT and TensorRT-RTX through Polygraphy. Both need an NVIDIA GPU to run an engine."""

from __future__ import annotations

import ctypes.util
import importlib
import importlib.util
import sys
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np

from hgkd_edge.bench.records import Refusal
from hgkd_edge.bench.runners.base import Case, Opened
from hgkd_edge.errors import DeviceError, reason_of

__all__ = ["TensorRtRunner"]

_EXTRA = {"tensorrt": "trt", "tensorrt_rtx": "trt-rtx"}


class TensorRtRunner:
    """One of the two TensorRT packages.

    Precision comes from the ONNX (strongly typed network), never from a flag, so that the engine
    computes what was verified.

    Args:
        package: Which one.
    """

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
        _use(self.package)
        from polygraphy.backend.trt import TrtRunner, engine_from_network, network_from_onnx_path
        from polygraphy.exception import PolygraphyException

        start = perf_counter()
        try:
            network = network_from_onnx_path(str(case.model.path), strongly_typed=True)
            engine = engine_from_network(network, config=_config(case))
        except PolygraphyException as error:
            raise DeviceError(
                f"{self.backend} cannot build '{case.model.path}': {reason_of(error)}",
                hint="export it again: hgkd-edge export --onnx --trt",
            ) from error
        build_ms = (perf_counter() - start) * 1000
        start = perf_counter()
        runner = TrtRunner(engine)
        runner.activate()
        load_ms = (perf_counter() - start) * 1000
        return Opened(
            run=_run(runner, case),
            load_ms=load_ms,
            build_ms=build_ms,
            engine_mb=_engine_mb(engine),
            details={"strongly_typed": True},
            close=runner.deactivate,
        )


def _config(case: Case) -> Any:
    """A builder configuration whose one profile is exactly the measured shape."""
    from polygraphy.backend.trt import CreateConfig, Profile

    profile = Profile()
    for name, array in case.feeds.items():
        profile.add(name, min=array.shape, opt=array.shape, max=array.shape)
    return CreateConfig(profiles=[profile])


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


def _use(package: str) -> None:
    """Tell Polygraphy which of the two packages to import; it decides once per process."""
    from polygraphy import config

    wanted = package == "tensorrt_rtx"
    if "polygraphy.backend.trt" in sys.modules and wanted != config.USE_TENSORRT_RTX:
        raise DeviceError(
            "TensorRT and TensorRT-RTX cannot be measured in one process",
            hint="name one: --runner tensorrt or --runner tensorrt-rtx",
        )
    config.USE_TENSORRT_RTX = wanted


def _engine_mb(engine: Any) -> float | None:
    serialised = engine.serialize()
    return None if serialised is None else np.asarray(memoryview(serialised)).nbytes / 2**20


def _has_nvidia_gpu() -> bool:
    """A driver library and a device node; no CUDA context is made for the asking."""
    nodes = (Path("/dev/nvidia0"), Path("/dev/nvhost-gpu"), Path("/dev/dxg"))
    return ctypes.util.find_library("cuda") is not None and any(node.exists() for node in nodes)
