"""ONNX Runtime, one runner per execution provider."""

from __future__ import annotations

from importlib import metadata
from time import perf_counter
from typing import Any

from exporters.runtimes.ort import SILENT
from hgkd_edge.bench.records import Refusal
from hgkd_edge.bench.runners.base import Case, Opened
from hgkd_edge.errors import DeviceError, reason_of

__all__ = ["OrtRunner"]

_MEND = {
    "CUDAExecutionProvider": "pip install onnxruntime-gpu (in place of onnxruntime)",
    "TensorrtExecutionProvider": "pip install onnxruntime-gpu (in place of onnxruntime)",
    "OpenVINOExecutionProvider": "pip install onnxruntime-openvino (in place of onnxruntime)",
}
_ON_GPU = ("CUDAExecutionProvider", "TensorrtExecutionProvider")


class OrtRunner:
    """One provider of ONNX Runtime.

    Args:
        name: Name of the runner (`ort-cpu`, ...).
        provider: Its execution provider. Nodes it does not take fall to CUDA, then to the CPU;
            a session in which the provider did not start at all is an error, not a slow success.
    """

    def __init__(self, name: str, provider: str) -> None:
        self.name = name
        self.provider = provider
        self.backend = provider
        self.opens = ".onnx"
        self.uses_threads = provider == "CPUExecutionProvider"
        self.needs_torch = False

    def refusal(self) -> Refusal | None:
        import onnxruntime

        if self.provider in onnxruntime.get_available_providers():
            return None
        return Refusal(
            name=self.name,
            reason=f"the installed onnxruntime has no {self.provider}",
            hint=_MEND.get(self.provider, ""),
        )

    def version(self) -> str:
        for package in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"):
            try:
                return metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
        import onnxruntime

        return str(onnxruntime.__version__)

    def open(self, case: Case) -> Opened:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = SILENT
        options.intra_op_num_threads = case.threads or 0
        start = perf_counter()
        try:
            session = onnxruntime.InferenceSession(
                str(case.model.path), options, providers=self._providers()
            )
        except Exception as error:  # onnxruntime's exceptions share no public base
            raise DeviceError(
                f"{self.name} cannot load '{case.model.path}': {reason_of(error)}",
                hint="see whether the model's operators are supported: hgkd-edge doctor",
            ) from error
        load_ms = (perf_counter() - start) * 1000
        if session.get_providers()[0] != self.provider:
            raise DeviceError(
                f"{self.provider} did not start; onnxruntime fell back to "
                f"{session.get_providers()[0]}",
                hint="check the driver and the CUDA and TensorRT libraries it needs",
            )
        run = (
            self._with_copies(session, case) if case.copies == "in" else self._bound(session, case)
        )
        names = [output.name for output in session.get_outputs()]
        return Opened(
            run=run,
            load_ms=load_ms,
            # The CPU's outputs are what all others are compared with.
            outputs=None
            if self.provider == "CPUExecutionProvider"
            else lambda feeds: dict(zip(names, session.run(names, feeds), strict=True)),
            computes="tf32" if self.provider in _ON_GPU else None,
            threads=case.threads,
            details={"providers": session.get_providers()},
        )

    def _providers(self) -> list[str]:
        fallback = ["CUDAExecutionProvider"] if self.provider == "TensorrtExecutionProvider" else []
        return list(dict.fromkeys([self.provider, *fallback, "CPUExecutionProvider"]))

    def _with_copies(self, session: Any, case: Case) -> Any:
        """numpy in, numpy out: what an application calls."""
        names = [output.name for output in session.get_outputs()]
        return lambda: session.run(names, case.feeds)

    def _bound(self, session: Any, case: Case) -> Any:
        """Inputs and outputs bound once on the device; only the computation is timed."""
        import onnxruntime

        device = "cuda" if self.provider in _ON_GPU else "cpu"
        binding = session.io_binding()
        values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)
            for name, array in case.feeds.items()
        }
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for output in session.get_outputs():
            binding.bind_output(output.name, device)

        def run(_values: Any = values) -> None:  # holds the inputs alive beside the binding
            session.run_with_iobinding(binding)
            if device == "cuda":
                binding.synchronize_outputs()

        return run
