"""TensorRT and TensorRT-RTX through Polygraphy, on the GPU that an engine was built for.

An engine is checked against its sidecar before any byte of it is deserialized.
"""

from __future__ import annotations

import ctypes.util
import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from .._trt_compat import EXTRAS, Flavor, choose, gpu_name, select_for_polygraphy
from ..errors import ConversionFailed, ExportError
from ..network_files import require_usual_size
from ..sidecar import Sidecar, read_sidecar, require_built_here, require_own_engine
from .session import (
    Copies,
    Details,
    Feeds,
    Input,
    Options,
    Outputs,
    Runtime,
    Session,
    ms_since,
    running,
)

__all__ = ["RUNTIMES", "TensorRtSession", "load_engine"]

_TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


class TensorRtSession(Session):
    """An engine.

    Args:
        source: The engine; its sidecar must be next to it.
        options: `shapes` must fit its profile; `built_here` or `trust_engine` must vouch for it.
        flavor: The package that must have built it; None takes the one that did.

    Raises:
        ExportError, MissingPackageError, ConversionFailed: As `load_engine`, or it does not fit.
    """

    def __init__(
        self,
        source: str | Path,
        options: Options = Options(),  # noqa: B008  it is frozen
        *,
        flavor: str | None = None,
    ) -> None:
        start = perf_counter()
        if options.built_here is None and not options.trust_engine:
            raise ExportError(
                f"engine '{source}': it is not recorded as built on this machine, and loading "
                "it runs its code",
                hint="use --trust-engine if you know who built it",
            )
        engine, made_by, sidecar = load_engine(
            source,
            onnx_path=options.made_from,
            built_here=None if options.trust_engine else options.built_here,
        )
        _require_fit(source, sidecar, options, flavor)
        select_for_polygraphy(made_by)
        from polygraphy.backend.trt import TrtRunner

        self._runner = TrtRunner(engine)
        self._runner.activate()
        self._profile = sidecar.profile
        self.runtime, self.package = _TITLES[made_by.name], made_by.name
        self.details = Details(
            load_ms=ms_since(start),
            size_mb=Path(source).stat().st_size / 2**20,
            settings={"precision": sidecar.precision},
        )

    @property
    def input(self) -> Input:
        ((name, expected),) = self._runner.get_input_metadata().items()
        least, most = (self._profile[which][0] for which in ("min", "max"))
        return Input(name, np.dtype(expected.dtype.name), least, most)

    def infer(self, feeds: Feeds) -> Outputs:
        # Polygraphy hands out its own buffers, which the next call overwrites.
        with running("TensorRT"):
            results = self._runner.infer(feeds)
        return {name: np.array(value) for name, value in results.items()}

    def bind(self, feeds: Feeds, copies: Copies) -> Callable[[], object]:
        if copies == "in":  # Polygraphy synchronizes the stream before it returns
            return lambda: self._runner.infer(feeds, check_inputs=False)
        from polygraphy.cuda import DeviceArray

        resident = {name: DeviceArray(array.shape, array.dtype) for name, array in feeds.items()}
        for name, array in feeds.items():
            resident[name].copy_from(array)
        views = {name: array.view() for name, array in resident.items()}

        def run(_kept: object = resident) -> object:
            return self._runner.infer(views, check_inputs=False, copy_outputs_to_host=False)

        return run

    def close(self) -> None:
        self._runner.deactivate()


def load_engine(
    path: str | Path, *, onnx_path: str | Path | None = None, built_here: Path | None = None
) -> tuple[Any, Flavor, Sidecar]:
    """Deserialize an engine from exactly the bytes that were checked.

    Args:
        path: The engine; its sidecar must be next to it.
        onnx_path: When given, the engine must have been built from exactly this file.
        built_here: When given, the folder in which `remember_engine` must have recorded the engine.

    Returns:
        `trt.ICudaEngine`, the flavor that built it, and its sidecar.

    Raises:
        ExportError: No GPU, a missing, damaged or foreign engine (see `require_own_engine`), or one
            that was built elsewhere.
        MissingPackageError: The flavor that built it is not installed.
        ConversionFailed: TensorRT refuses the engine although its sidecar agrees.
    """
    flavor = choose(read_sidecar(path).backend, what="running an engine")
    require_usual_size(path)
    content = Path(path).read_bytes()
    sidecar = require_own_engine(path, content, flavor, onnx_path=onnx_path)
    if built_here is not None:
        require_built_here(path, content, built_here)
    if gpu_name() is None:
        raise ExportError(
            f"engine '{path}' can only run on an NVIDIA GPU, and there is none here",
            hint="copy the ONNX file to the device and build there",
        )
    trt = importlib.import_module(flavor.name)
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(content)
    if engine is None:
        raise ConversionFailed(
            f"{flavor.name} {flavor.version} refuses the engine '{path}'",
            hint="build it again here; its reason was printed above",
        )
    return engine, flavor, sidecar


def _require_fit(path: str | Path, sidecar: Sidecar, options: Options, flavor: str | None) -> None:
    """Check that an engine belongs to the requested package and takes the requested batch."""
    if flavor not in (None, sidecar.backend):
        raise ExportError(
            f"'{path}' was built by {sidecar.backend}",
            hint=f"--runner {sidecar.backend.replace('_', '-')}",
        )
    least, most = sidecar.profile["min"][0], sidecar.profile["max"][0]
    for shape in options.shapes.values():
        if not least <= shape[0] <= most:
            raise ExportError(
                f"'{path}' takes batches of {least} to {most}, not {shape[0]}",
                hint=f"hgkd-edge export --trt --max-batch {shape[0]}, or another --batch",
            )


def _lacks_gpu() -> ExportError | None:
    # A driver library and a device node; checked without creating a CUDA context.
    nodes = (Path("/dev/nvidia0"), Path("/dev/nvhost-gpu"), Path("/dev/dxg"))
    if ctypes.util.find_library("cuda") is None or not any(node.exists() for node in nodes):
        return ExportError(
            "no NVIDIA GPU here; engines can be built but not run",
            hint="measure on the device: hgkd-edge bench --device jetson --host user@jetson",
        )
    return None


RUNTIMES = tuple(
    Runtime(
        name=package.replace("_", "-"),
        backend=title,
        opens=".plan",
        open=partial(TensorRtSession, flavor=package),
        packages=(package, "polygraphy"),
        extra=EXTRAS[package],
        uses_threads=False,
        lacks=_lacks_gpu,
    )
    for package, title in _TITLES.items()
)
