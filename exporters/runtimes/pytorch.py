"""PyTorch, eager or compiled: a module, on the device its parameters are on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from .session import Copies, Details, Feeds, Input, Options, Outputs, Runtime, Session, ms_since

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["RUNTIMES", "TorchSession"]


class TorchSession(Session):
    """A module in evaluation mode.

    Args:
        source: The module; `infer` restores its mode, `bind` leaves it in evaluation mode.
        options: Only `names` and `threads` are used; `shapes` lists the shapes to compile for.
        compiled: Through `torch.compile` with its default settings.
    """

    runtime = "PyTorch"
    package = "torch"
    input = Input("images", np.dtype(np.float32))

    def __init__(
        self,
        source: nn.Module,
        options: Options = Options(),  # noqa: B008  it is frozen
        *,
        compiled: bool = False,
    ) -> None:
        import torch

        start = perf_counter()
        self._module, self._names = source, options.names
        self._forward: Any = torch.compile(source) if compiled else source
        self._threads = options.threads or torch.get_num_threads()
        load_ms, build_ms = ms_since(start), None
        if compiled:
            start = perf_counter()
            for shape in options.shapes.values():  # compiles on the first call of each shape
                self.infer({"images": np.zeros(shape, np.float32)})
            build_ms = ms_since(start)
        self.details = Details(load_ms=load_ms, build_ms=build_ms, threads=self._threads)

    def infer(self, feeds: Feeds) -> Outputs:
        import torch

        training = self._module.training
        self._module.eval()
        try:
            with torch.no_grad():
                outputs = _tensors(self._compute(self._placed(feeds)))
        finally:
            self._module.train(training)
        names = self._names or [f"output{number}" for number in range(len(outputs))]
        return dict(zip(names, map(_array, outputs), strict=True))

    def bind(self, feeds: Feeds, copies: Copies) -> Callable[[], object]:
        import torch

        self._module.eval()
        resident = self._placed(feeds)

        @torch.inference_mode()
        def run() -> object:
            output = self._compute(self._placed(feeds) if copies == "in" else resident)
            if copies == "in":
                return [_array(tensor) for tensor in _tensors(output)]
            if resident.is_cuda:
                torch.cuda.synchronize()
            return output

        return run

    def _placed(self, feeds: Feeds) -> torch.Tensor:
        import torch

        images = torch.from_numpy(np.ascontiguousarray(next(iter(feeds.values())))).float()
        first = next(self._module.parameters(), None)
        return images if first is None else images.to(first.device)

    def _compute(self, images: torch.Tensor) -> Any:
        import torch

        if torch.get_num_threads() != self._threads:  # it is global in torch: each call sets it
            torch.set_num_threads(self._threads)
        return self._forward(images)


def _tensors(output: Any) -> list[Any]:
    if isinstance(output, dict):
        return list(output.values())
    return list(output) if isinstance(output, (list, tuple)) else [output]


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


RUNTIMES = tuple(
    Runtime(
        name="torch-compile" if compiled else "torch",
        backend="PyTorch compile" if compiled else "PyTorch eager",
        opens=".safetensors",
        open=partial(TorchSession, compiled=compiled),
        packages=("torch",),
        extra="train",
    )
    for compiled in (False, True)
)
