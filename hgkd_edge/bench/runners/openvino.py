"""OpenVINO on this machine's CPU."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np

from hgkd_edge.bench.records import Refusal
from hgkd_edge.bench.runners.base import Case, Opened
from hgkd_edge.errors import DeviceError, reason_of

__all__ = ["OpenVinoRunner"]

_COMPUTES = {"bf16": "bf16", "f16": "fp16"}


class OpenVinoRunner:
    """One synchronous request with the LATENCY hint (one stream), as `benchmark_app -hint latency
    -api sync` measures.

    OpenVINO may compute an FP32 model in bf16 or fp16 where the hardware has it; the precision it
    chose is recorded in `details`. An .onnx file is read as it is where no .xml was exported from
    it.
    """

    name = "openvino"
    backend = "OpenVINO CPU"
    opens = ".xml"
    uses_threads = True
    needs_torch = False

    def refusal(self) -> Refusal | None:
        try:
            import openvino  # noqa: F401
        except ImportError:
            return Refusal(
                name=self.name,
                reason="the package 'openvino' is not installed",
                hint='pip install "hgkd-edge[openvino]"',
            )
        return None

    def version(self) -> str:
        import openvino

        return str(openvino.__version__)

    def open(self, case: Case) -> Opened:
        import openvino

        hints: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
        if case.threads is not None:
            hints["INFERENCE_NUM_THREADS"] = case.threads
        core = openvino.Core()
        try:
            start = perf_counter()
            model = core.read_model(str(case.model.path))
            # Static shapes, as a deployed OpenVINO model has: dynamic ones run a slower path.
            model.reshape({name: list(array.shape) for name, array in case.feeds.items()})
            read_ms = (perf_counter() - start) * 1000
            start = perf_counter()
            compiled = core.compile_model(model, "CPU", hints)
            build_ms = (perf_counter() - start) * 1000
        except RuntimeError as error:
            raise DeviceError(
                f"OpenVINO cannot load '{case.model.path}': {reason_of(error)}",
                hint="measure it with --device cpu instead",
            ) from error
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        request = compiled.create_infer_request()
        return Opened(
            run=_with_copies(request, case.feeds)
            if case.copies == "in"
            else _resident(request, case.feeds),
            load_ms=read_ms,
            build_ms=build_ms,
            outputs=_outputs(request, {output.name for output in case.model.info.outputs}),
            computes=_COMPUTES.get(precision),
            threads=int(compiled.get_property("INFERENCE_NUM_THREADS")),
            details={"inference_precision": precision},
            warnings=[f"OpenVINO computes this fp32 model in {precision} here"]
            if case.model.precision == "fp32" and precision != "f32"
            else [],
        )


def _outputs(request: Any, names: set[str]) -> Any:
    """What the request computes, by the names that the ONNX file gives its outputs."""

    def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, array in feeds.items():
            request.get_tensor(name).data[:] = array
        request.infer()
        ports = request.model_outputs
        return {
            next(iter(port.names & names), port.any_name): np.array(request.get_tensor(port).data)
            for port in ports
        }

    return run


def _with_copies(request: Any, feeds: dict[str, np.ndarray]) -> Any:
    """Input copied into the request's own memory, outputs copied out."""

    def run() -> list[np.ndarray]:
        for name, array in feeds.items():
            request.get_tensor(name).data[:] = array
        request.infer()
        return [np.array(tensor.data) for tensor in request.output_tensors]

    return run


def _resident(request: Any, feeds: dict[str, np.ndarray]) -> Any:
    """Input already in the request's memory, output left there."""
    for name, array in feeds.items():
        request.get_tensor(name).data[:] = array
    return request.infer
