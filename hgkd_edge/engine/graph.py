"""The forward and backward pass as a CUDA graph.

A pass of the sparse student starts more than a thousand short kernels, which takes the host longer
than the GPU needs to run them. A graph starts all of them at once. Captured are the model with its
loss, and the backward pass. Learning rate, clipping, optimizer, average and checkpoints stay
outside: they are the same with and without a graph. So does what several processes exchange: a
captured pass makes the gradients of one process, and `exchange.py` takes their mean afterwards.

A graph reads and writes the same memory at every replay: inputs are copied to where it expects
them, its outputs and the gradients lie where it leaves them.
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
from hgkd_edge.engine.training import Inputs

__all__ = ["Capturing", "CudaGraphs", "GraphedPass", "Outputs", "Work", "graphed_pass"]

WARM_UP = 2  # updates before the capture, in which libraries choose and build their kernels

Outputs = dict[str, Tensor]
Work = Callable[[Inputs], Outputs]  # adds to the gradients of a model and returns its scalars


class Capturing(Protocol):
    """How a pass is captured; `CudaGraphs`, or in tests a trace on the CPU."""

    def warm_up(self, work: Work, inputs: Inputs) -> Outputs:
        """Run it, as it will be run while it is captured."""
        ...

    def capture(self, work: Work, inputs: Inputs) -> Callable[[], Outputs]:
        """Capture it without running it; returns what runs it on these inputs' memory.

        Raises:
            RuntimeError: It cannot be captured.
        """
        ...


class CudaGraphs:
    """CUDA graphs on one stream, which share their memory."""

    def __init__(self) -> None:
        self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def warm_up(self, work: Work, inputs: Inputs) -> Outputs:
        # On the stream of the capture: autograd remembers on which one a gradient was made.
        with self._aside():
            return work(inputs)

    def capture(self, work: Work, inputs: Inputs) -> Callable[[], Outputs]:
        graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that reads photos ahead may pin memory in the meantime.
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
        """Work on the stream, after all that was started before and before all that follows."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream().wait_stream(self.stream)


class GraphedPass:
    """A pass that is captured after two updates and replayed from then on.

    Inputs of another form (shapes, dtypes, numbers) than the last ones', such as whole images after
    masked ones, are captured again, and what was captured before is forgotten.

    Args:
        work: The pass. It reads no value of a tensor.
        model: Whose gradients it adds to.
        how: Makes what captures the passes of one form.
    """

    def __init__(self, work: Work, model: nn.Module, how: Callable[[], Capturing]) -> None:
        self.work, self.model, self.how = work, model, how
        self.capturing = how()
        self.form: tuple[object, ...] = ()
        self.updates = 0  # that this form was run in
        self.inputs: Inputs = ()
        self.replays: dict[bool, Callable[[], Outputs]] = {}
        self.failed = False

    @property
    def holds_gradients(self) -> bool:
        """Whether the first pass of an update overwrites the gradients, which must then stay."""
        return bool(self.replays)

    def __call__(self, inputs: Inputs, *, adds: bool) -> Outputs:
        """Run the pass.

        Args:
            inputs: Its inputs.
            adds: Whether it adds to the gradients of the update's passes before it.

        Returns:
            Its scalars, valid until the next call.
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
        """Capture the pass, if that can be done."""
        if not adds:
            self.model.zero_grad(set_to_none=True)  # captured, a pass makes its gradients itself
            self.inputs = tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)
        try:
            self.replays[adds] = self.capturing.capture(self.work, self.inputs)
        except RuntimeError as error:
            if not adds:
                self.model.zero_grad(set_to_none=True)  # made by the capture, and never filled
            self._forget(())
            self.failed = True
            _report(f"it cannot be captured ({_cause(error)})")
        return not self.failed

    def _forget(self, form: tuple[object, ...]) -> None:
        """Free the memory of what was captured; the gradients stay."""
        self.form, self.updates, self.inputs = form, 0, ()
        self.replays.clear()
        self.capturing = self.how()  # freed memory cannot be shared again


def graphed_pass(
    work: Work, model: nn.Module, accelerator: Accelerator, *, wanted: bool, exchanges: bool
) -> GraphedPass | None:
    """The pass as a graph; None where it is not wanted, on a CPU, and where it cannot be one.

    Args:
        work: The pass of this process alone.
        model: Whose gradients it adds to.
        accelerator: The training's.
        wanted: Whether the recipe wants it, and the task's model can be captured.
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
    """One line on what is slower than it could be, and why."""
    warn(f"training without a CUDA graph: {why}")


def _form(inputs: Inputs) -> tuple[object, ...]:
    return tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in inputs)


def _cause(error: BaseException) -> str:
    """First line of the error that began it: ending a failed capture is one more error."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {error}".partition("\n")[0]
