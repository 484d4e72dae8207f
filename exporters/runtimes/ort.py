"""ONNX Runtime: one runtime per execution provider."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ..errors import ConversionFailed, ExportError, reason_of
from ..network_files import network_files
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

__all__ = ["RUNTIMES", "SILENT", "OrtSession"]

CPU, CUDA, TENSORRT, OPENVINO = (
    f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt", "OpenVINO")
)
_PACKAGES = {CUDA: "onnxruntime-gpu", TENSORRT: "onnxruntime-gpu", OPENVINO: "onnxruntime-openvino"}
_ON_GPU = (CUDA, TENSORRT)
# ONNX Runtime's own log level: errors are raised too, and the log prints a model's names unescaped.
SILENT = 4
# x86 CPUs without VNNI would add INT8 products in 16 bits, which overflow. Others ignore it.
_EXACT_INT8 = "session.x64quantprecision"
_TYPES = {"tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class OrtSession(Session):
    """An ONNX file, or the bytes of one.

    Args:
        source: Path or bytes.
        options: Only `threads` is used.
        provider: Nodes that it does not support fall back to CUDA, then to the CPU. A provider that
            did not start at all is an error.
        optimize: False runs the graph node by node as written, to look at intermediate values.

    Raises:
        ExportError: Its weights are missing or outside its folder, or the provider did not start.
        ConversionFailed: ONNX Runtime refuses the model (an unsupported operator, for example).
    """

    runtime = "ONNX Runtime"
    package = "onnxruntime"

    def __init__(
        self,
        source: str | Path | bytes,
        options: Options = Options(),  # noqa: B008  it is frozen
        *,
        provider: str = CPU,
        optimize: bool = True,
    ) -> None:
        import onnxruntime  # noqa: F401  if it is missing, that is no error of the model

        if not isinstance(source, bytes):
            network_files(source)
        threads = options.threads or _allowed_threads()
        fallback = [CUDA] if provider == TENSORRT else []
        providers = list(dict.fromkeys([provider, *fallback, CPU]))
        model = source if isinstance(source, bytes) else str(source)
        start = perf_counter()
        try:
            self._session = _open(model, providers, threads, optimize, exact=provider == CPU)
            self.metadata = self._session.get_modelmeta().custom_metadata_map
            self._names = [output.name for output in self._session.get_outputs()]
        except Exception as error:  # onnxruntime raises a family of C++ exceptions without a base
            name = "the model" if isinstance(source, bytes) else f"'{source}'"
            raise ConversionFailed(
                f"ONNX Runtime cannot load {name}: {reason_of(error)}",
                hint="the message names the node; replace that operator in the model, "
                "or use a newer onnxruntime",
            ) from error
        started = self._session.get_providers()
        if started[0] != provider:
            raise ExportError(
                f"{provider} did not start; onnxruntime fell back to {started[0]}",
                hint="check the driver and the CUDA and TensorRT libraries it needs",
            )
        self.details = Details(
            load_ms=ms_since(start),
            threads=threads or None,
            computes="tf32" if provider in _ON_GPU else None,
            settings={"providers": started},
        )
        self._device = "cuda" if provider in _ON_GPU else "cpu"

    @property
    def input(self) -> Input:
        taken = self._session.get_inputs()[0]
        batch = taken.shape[0] if taken.shape and isinstance(taken.shape[0], int) else None
        return Input(
            taken.name, np.dtype(_TYPES.get(taken.type, np.float32)), least=batch or 1, most=batch
        )

    def infer(self, feeds: Feeds) -> Outputs:
        with running("ONNX Runtime"):
            values = self._session.run(self._names, feeds)
        return dict(zip(self._names, values, strict=True))

    def bind(self, feeds: Feeds, copies: Copies) -> Callable[[], object]:
        if copies == "in":
            return lambda: self._session.run(self._names, feeds)
        import onnxruntime

        binding = self._session.io_binding()
        values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device, 0)
            for name, array in feeds.items()
        }
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in self._names:
            binding.bind_output(name, self._device)

        def run(
            _values: object = values,
        ) -> None:  # keeps the inputs alive: the binding does not
            self._session.run_with_iobinding(binding)
            if self._device == "cuda":
                binding.synchronize_outputs()

        return run


def _allowed_threads() -> int:
    """Cores of a process that may not use all of them (`taskset`, a container's cpuset), else 0.

    0 leaves the number to ONNX Runtime. It counts the machine's cores, and threads that share a
    core spin while they wait for each other.
    """
    if not hasattr(os, "sched_getaffinity"):
        return 0
    allowed = len(os.sched_getaffinity(0))
    return allowed if allowed < (os.cpu_count() or 1) else 0


def _lacks(provider: str) -> ExportError | None:
    import onnxruntime

    if provider in onnxruntime.get_available_providers():
        return None
    package = _PACKAGES.get(provider)
    return ExportError(
        f"the installed onnxruntime has no {provider}",
        hint=f"pip install {package} (in place of onnxruntime)" if package else "",
    )


RUNTIMES = tuple(
    Runtime(
        name=name,
        backend=provider,
        opens=".onnx",
        open=partial(OrtSession, provider=provider),
        packages=("onnxruntime",),
        uses_threads=provider == CPU,
        lacks=partial(_lacks, provider),
    )
    for name, provider in {
        "ort-cpu": CPU,
        "ort-cuda": CUDA,
        "ort-tensorrt": TENSORRT,
        "ort-openvino": OPENVINO,
    }.items()
)


def _open(
    model: str | bytes, providers: list[str], threads: int, optimize: bool, *, exact: bool
) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = SILENT
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry(_EXACT_INT8, str(int(exact)))
    if not optimize:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(model, settings, providers=providers)
    except Exception:  # also without VNNI, where layers share weights
        if not exact:
            raise
    return _open(model, providers, threads, optimize, exact=False)
