"""PyTorch, eager or compiled: the point one exports away from. Imported only when asked for."""

from __future__ import annotations

import importlib.util
from time import perf_counter
from typing import Any

from hgkd_edge.bench.records import Refusal
from hgkd_edge.bench.runners.base import Case, Opened
from hgkd_edge.errors import DeviceError

__all__ = ["TorchRunner"]


class TorchRunner:
    """A dense module in evaluation mode, fp32, under inference mode.

    Args:
        compiled: Through `torch.compile` with its default settings.
    """

    opens = ".onnx"
    uses_threads = True
    needs_torch = True

    def __init__(self, *, compiled: bool) -> None:
        self.compiled = compiled
        self.name = "torch-compile" if compiled else "torch"
        self.backend = "PyTorch compile" if compiled else "PyTorch eager"

    def refusal(self) -> Refusal | None:
        if importlib.util.find_spec("torch") is None:
            return Refusal(
                name=self.name,
                reason="the package 'torch' is not installed",
                hint='pip install "hgkd-edge[train]"',
            )
        return None

    def version(self) -> str:
        import torch

        return str(torch.__version__)

    def open(self, case: Case) -> Opened:
        import torch

        if case.torch_module is None:
            raise DeviceError(
                f"runner '{self.name}' has no PyTorch module for '{case.model.label}'",
                hint="give a run folder, whose backbone it can load, or another --runner",
            )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        start = perf_counter()
        module = case.torch_module.to(device).eval()
        forward: Any = torch.compile(module) if self.compiled else module
        images = torch.from_numpy(next(iter(case.feeds.values()))).float()
        opened_ms = (perf_counter() - start) * 1000
        build_ms = None
        threads = case.threads or torch.get_num_threads()
        if self.compiled:
            start = perf_counter()
            with torch.inference_mode():
                forward(images.to(device))  # compiles on the first call of each shape
            build_ms = (perf_counter() - start) * 1000
        run = _run(forward, images, device=device, copies=case.copies, threads=threads)
        return Opened(run=run, load_ms=opened_ms, build_ms=build_ms, threads=threads)


def _run(forward: Any, images: Any, *, device: str, copies: str, threads: int) -> Any:
    """One inference; the thread count is global in torch, so each run sets its own."""
    import torch

    resident = images.to(device)

    def run() -> Any:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        with torch.inference_mode():
            output = forward(images.to(device) if copies == "in" else resident)
        if copies == "in":
            return [tensor.cpu().numpy() for tensor in _tensors(output)]
        if device == "cuda":
            torch.cuda.synchronize()
        return output

    return run


def _tensors(output: Any) -> list[Any]:
    if isinstance(output, dict):
        return list(output.values())
    return list(output) if isinstance(output, (list, tuple)) else [output]
