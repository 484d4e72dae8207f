"""Tracing a training pass on the CPU, as a stand-in for capturing it on a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.stateless import _reparametrize_module

from hgkd_edge.engine import graph, loop

Values = tuple[Any, ...]  # tensors, and numbers that a trace keeps as they were
Work = Callable[[Values], dict[str, Tensor]]


class Tracing:
    """Has the interface of `engine.graph.CudaGraphs`, on a CPU.

    What a stream capture refuses is refused by the trace as well: asking for a tensor's value, and
    shapes that depend on one. A replay runs the recorded operations on the current contents of the
    inputs, and writes to the same outputs and gradients every time.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.traces: list[fx.GraphModule] = []
        self.replays = 0

    def warm_up(self, work: Work, inputs: Values) -> dict[str, Tensor]:
        return work(inputs)

    def capture(self, work: Work, inputs: Values) -> Callable[[], dict[str, Tensor]]:
        weights, buffers = dict(self.model.named_parameters()), dict(self.model.named_buffers())
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        adds = {name: w.grad for name, w in weights.items() if w.grad is not None}

        def run(
            weights: dict[str, Tensor],
            buffers: dict[str, Tensor],
            adds: dict[str, Tensor],
            tensors: list[Tensor],
        ) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
            leaves = {name: w.detach().requires_grad_(learns[name]) for name, w in weights.items()}
            for name, grad in adds.items():
                leaves[name].grad = grad
            given = iter(tensors)
            with _reparametrize_module(self.model, {**leaves, **buffers}):
                outputs = work(tuple(next(given) if isinstance(x, Tensor) else x for x in inputs))
            return outputs, {name: leaf.grad for name, leaf in leaves.items()}

        learns = {name: w.requires_grad for name, w in weights.items()}
        state = {name: w.detach() for name, w in weights.items()}
        make = make_fx(run, tracing_mode="fake", _allow_non_fake_inputs=True)
        try:
            trace = make(state, buffers, adds, tensors)
        finally:
            for name, weight in weights.items():  # as after a capture: nothing has written to them
                if learns[name] and weight.grad is None:
                    weight.grad = torch.full_like(weight, math.nan)
        static = {name: w.grad for name, w in weights.items() if w.grad is not None}
        self.traces.append(trace)
        kept: dict[str, Tensor] = {}

        def replay() -> dict[str, Tensor]:
            self.replays += 1
            outputs, grads = trace(state, buffers, adds, tensors)
            for name, value in outputs.items():
                kept.setdefault(name, torch.empty_like(value)).copy_(value)
            for name, grad in grads.items():
                if grad is not None:
                    static[name].copy_(grad)
            return kept

        return replay


def record(monkeypatch: pytest.MonkeyPatch) -> list[Tracing]:
    """From now on trainings record their passes by a trace, and read figures late.

    Returns:
        The recorders of the trainings, filled in as they start.
    """
    made: list[Tracing] = []

    def graphed_pass(
        work: Any, model: Any, _: Any, *, wanted: bool, exchanges: bool
    ) -> graph.GraphedPass | None:
        if not wanted or exchanges:
            return None
        made.append(Tracing(model))
        return graph.GraphedPass(work, model, lambda: made[-1])

    monkeypatch.setattr(loop, "graphed_pass", graphed_pass)
    monkeypatch.setattr(loop, "reads_late", lambda _, config: config.optimizer == "adamw")
    return made


def host_data(trace: fx.GraphModule) -> list[str]:
    """Operations of a trace on data that Python brought, which a GPU's host would have to copy."""
    return [str(node.target) for node in trace.graph.nodes if "lift_fresh" in str(node.target)]
