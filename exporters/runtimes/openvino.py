"""OpenVINO on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConversionFailed, ExportError, MissingPackageError
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

if TYPE_CHECKING:
    import openvino

__all__ = ["RUNTIMES", "OpenVinoSession", "last_line", "require_openvino"]

_COMPUTES = {"bf16": "bf16", "f16": "fp16"}


class OpenVinoSession(Session):
    """An .xml, an .onnx, or a model already in memory.

    Args:
        source: A path or OpenVINO's own model.
        options: With `exact`, fp32 arithmetic: this checks the file, not a plugin's default.
            Without, one stream with the latency hint, as `benchmark_app -hint latency -api sync`
            runs it, in the precision that the plugin prefers (`details.computes`). `shapes` are
            compiled in, as in a deployed model: free axes run a slower path.

    Raises:
        ExportError: A file of the network is missing or too large.
        MissingPackageError: OpenVINO is not installed.
        ConversionFailed: OpenVINO refuses the model.
    """

    runtime = "OpenVINO"
    package = "openvino"

    def __init__(
        self,
        source: str | Path | openvino.Model,
        options: Options = Options(),  # noqa: B008  it is frozen
    ) -> None:
        require_openvino("running an OpenVINO model")
        import openvino

        hints: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if not options.exact:
            hints = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
        if options.threads is not None:
            hints["INFERENCE_NUM_THREADS"] = options.threads
        core = openvino.Core()
        model: Any = source
        try:
            start = perf_counter()
            if isinstance(source, (str, Path)):
                network_files(source)
                model = core.read_model(str(source))
            if options.shapes:
                model.reshape({name: list(shape) for name, shape in options.shapes.items()})
            load_ms, start = ms_since(start), perf_counter()
            self._network = core.compile_model(model, "CPU", hints)
            build_ms = ms_since(start)
            self.metadata = _metadata(model)
        except ExportError:
            raise
        except Exception as error:  # OpenVINO's own types have no common base
            name = f"'{source}'" if isinstance(source, (str, Path)) else "the model"
            raise ConversionFailed(
                f"OpenVINO cannot load {name}: {last_line(error)}",
                hint="export the model again, or run its ONNX file",
            ) from error
        precision = self._network.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.details = Details(
            load_ms=load_ms,
            build_ms=build_ms,
            threads=int(self._network.get_property("INFERENCE_NUM_THREADS")),
            computes=_COMPUTES.get(precision),
            settings={"inference_precision": precision},
        )
        self._request = self._network.create_infer_request()
        self._names = {port: _name(port) for port in self._network.outputs}

    @property
    def input(self) -> Input:
        port = self._network.inputs[0]
        axis = port.get_partial_shape()[0]
        batch = axis.get_length() if axis.is_static else None
        dtype = np.dtype(port.get_element_type().to_dtype())
        return Input(port.any_name, dtype, least=batch or 1, most=batch)

    def infer(self, feeds: Feeds) -> Outputs:
        with running("OpenVINO", last_line):
            results = self._request.infer(dict(feeds))
        return {name: np.array(results[port]) for port, name in self._names.items()}

    def bind(self, feeds: Feeds, copies: Copies) -> Callable[[], object]:
        request = self._network.create_infer_request()

        def fill() -> None:
            for name, array in feeds.items():
                request.get_tensor(name).data[:] = array

        def run() -> list[np.ndarray]:
            fill()
            request.infer()
            return [np.array(tensor.data) for tensor in request.output_tensors]

        if copies == "in":
            return run
        fill()
        return request.infer


def require_openvino(what: str) -> None:
    """Raise MissingPackageError, naming what needs OpenVINO, where it is not installed."""
    if importlib.util.find_spec("openvino") is None:
        raise MissingPackageError(what, package="openvino", extra="openvino")


def last_line(error: BaseException) -> str:
    """OpenVINO starts its messages with lines of its source code; the reason comes last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _metadata(model: openvino.Model) -> dict[str, str]:
    """The ONNX file's metadata, which OpenVINO keeps in a separate section."""
    if not model.has_rt_info("framework"):
        return {}
    entries = model.get_rt_info("framework").astype(dict)
    return {key: entry.astype(str) for key, entry in entries.items()}


def _name(port: Any) -> str:
    """The name that the ONNX file gives an output; a tensor can have others, from inside the graph,
    and `any_name` is any of them."""
    name = port.get_node().get_friendly_name().removesuffix("/sink_port_0")
    return str(name if name in port.names else port.any_name)


RUNTIMES = (
    Runtime(
        name="openvino",
        backend="OpenVINO CPU",
        opens=".xml",
        open=OpenVinoSession,
        packages=("openvino",),
        extra="openvino",
    ),
)
