"""The forward and backward pass as a CUDA graph.

A pass of the sparse student launches more than a thousand short kernels, which takes the host
longer than the GPU needs to run them. A graph launches all of them at once. It captures the model
with its loss, and the backward pass. Learning rate, clipping, optimizer, average and checkpoints
stay outside: they are the same with and without a graph. Communication between processes also stays
outside: a captured pass computes the gradients of one process, and `exchange.py` averages them
afterwards.

A graph reads and writes the same memory at every replay. Inputs are copied to where it expects
them; its outputs and the gradients are read where it leaves them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from hgkd_edge.console import warn
from hgkd_edge.engine.interface import Inputs

__all__ = ["Capturing", "CudaGraphs", "GraphedPass", "Outputs", "Work", "graphed_pass"]

WARM_UP = 2  # updates before the capture, in which libraries choose and build their kernels

Outputs = dict[str, Tensor]
Work = Callable[[Inputs], Outputs]  # adds to the gradients of a model and returns its scalars


class Capturing(Protocol):
    """How a pass is captured: `CudaGraphs`, or in tests a trace on the CPU."""

    def warm_up(self, work: Work, inputs: Inputs) -> Outputs:
        """Run the pass once, under the conditions of the capture."""
        ...

    def capture(self, work: Work, inputs: Inputs) -> Callable[[], Outputs]:
        """Capture the pass without running it; returns a function that runs it on the same inputs.

        Raises:
            RuntimeError: The pass cannot be captured.
        """
        ...


class CudaGraphs:
    """CUDA graphs on one stream that share their memory."""

    def __init__(self) -> None:
        self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def warm_up(self, work: Work, inputs: Inputs) -> Outputs:
        """Do the work once without capturing it: CUDA libraries allocate at first use."""
        # On the capture's stream: autograd records the stream on which a gradient was created.
        with self._aside():
            return work(inputs)

    def capture(self, work: Work, inputs: Inputs) -> Callable[[], Outputs]:
        """Record the work on `inputs`; the result repeats it on what they hold by then."""
        graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that reads images ahead may pin memory in the meantime.
        capture = torch.cuda.graph(
            graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
        )
        with self._aside(), capture:
            outputs = work(inputs)

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Run work on the stream, ordered after earlier work and before later work."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream().wait_stream(self.stream)


class GraphedPass:
    """A pass that is captured after two updates and replayed from then on.

    If the form of the inputs (shapes, dtypes, numbers) changes, for example from masked to whole
    images, the pass is captured again and the previous capture is dropped.

    Args:
        work: The pass. It must not read any tensor value on the host.
        model: The model whose gradients the pass adds to.
        how: Creates the object that captures the passes of one form.
    """

    def __init__(self, work: Work, model: nn.Module, how: Callable[[], Capturing]) -> None:
        self.work, self.model, self.how = work, model, how
        self.capturing = how()
        self.form: tuple[object, ...] = ()
        self.updates = 0  # updates run with this form
        self.inputs: Inputs = ()
        self.replays: dict[bool, Callable[[], Outputs]] = {}
        self.failed = False

    @property
    def holds_gradients(self) -> bool:
        """Whether an update's first pass overwrites the gradients, which then must not be freed."""
        return bool(self.replays)

    def __call__(self, inputs: Inputs, *, adds: bool) -> Outputs:
        """Run the pass.

        Args:
            inputs: Inputs of the pass.
            adds: Whether to add to the gradients of earlier passes of the same update.

        Returns:
            The scalars, valid until the next call.
        """
        if self.failed:
            return self.work(inputs)
        if (form := _form(inputs)) != self.form:
            if self.replays:
                self.model.zero_grad(set_to_none=True)
            self._forget(form)
        self.updates += not adds
        if self.updates <= WARM_UP:
            return self.capturing.warm_up(self.work, inputs)
        if adds not in self.replays and not self._capture(inputs, adds=adds):
            return self.work(inputs)
        for static, new in zip(self.inputs, inputs, strict=True):
            if isinstance(static, Tensor) and isinstance(new, Tensor):
                static.copy_(new)
        return self.replays[adds]()

    def _capture(self, inputs: Inputs, *, adds: bool) -> bool:
        """Capture the pass, if possible."""
        if not adds:
            self.model.zero_grad(set_to_none=True)  # a captured pass allocates its gradients itself
            self.inputs = tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)
        try:
            self.replays[adds] = self.capturing.capture(self.work, self.inputs)
        except RuntimeError as error:
            if not adds:
                self.model.zero_grad(set_to_none=True)  # allocated by the capture, never filled
            self._forget(())
            self.failed = True
            _report(f"it cannot be captured ({_cause(error)})")
        return not self.failed

    def _forget(self, form: tuple[object, ...]) -> None:
        """Free the memory of the capture; the gradients stay."""
        self.form, self.updates, self.inputs = form, 0, ()
        self.replays.clear()
        self.capturing = self.how()  # freed memory cannot be shared again


def graphed_pass(
    work: Work, model: nn.Module, accelerator: Accelerator, *, wanted: bool, exchanges: bool
) -> GraphedPass | None:
    """The pass as a graph; None if unwanted, on a CPU, or if it cannot be captured.

    Args:
        work: The pass, without communication between processes.
        model: The model whose gradients the pass adds to.
        accelerator: The training's accelerator.
        wanted: Whether the recipe enables it and the task's model can be captured.
        exchanges: Whether processes exchange statistics during the pass (synchronized BatchNorm).
    """
    if not wanted or accelerator.device.type != "cuda":
        return None
    if why := _obstacle(accelerator, exchanges=exchanges):
        _report(why)
        return None
    return GraphedPass(work, model, CudaGraphs)


def _obstacle(accelerator: Accelerator, *, exchanges: bool) -> str:
    """Why passes cannot be captured on this GPU, '' if they can."""
    if exchanges:
        return "train.sync_batchnorm exchanges statistics during the pass"
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU):
        return f"Accelerate runs {accelerator.distributed_type.value}"
    if accelerator.scaler is not None:
        return "train.precision fp16 scales the loss by a number that changes"
    return ""


def _report(why: str) -> None:
    """One line about what is slower than possible, and why."""
    warn(f"training without a CUDA graph: {why}")


def _form(inputs: Inputs) -> tuple[object, ...]:
    return tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in inputs)


def _cause(error: BaseException) -> str:
    """First line of the original error: ending a failed capture raises another one."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {error}".partition("\n")[0]
