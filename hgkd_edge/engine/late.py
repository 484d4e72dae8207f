"""What is known of an update only after the device has made it.

The host starts kernels long before a GPU runs them. Asking for a number makes it wait, and then the
GPU waits for the host. So an update's figures are read one update late, when they have long been
there, and what must happen before the next update happens on the device: an update whose loss or
gradient is not finite is skipped by the optimizer itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hgkd_edge.recipe import TrainConfig

__all__ = ["Batch", "Figures", "Snapshot", "Update", "reads_late"]


def reads_late(accelerator: Accelerator, config: TrainConfig) -> bool:
    """Whether figures are read one update late.

    Not on a CPU, where there is nothing to wait for; nor with an optimizer that cannot skip an
    update on the device (LAMB), or one whose gradients a scaler checks (fp16).
    """
    skips = config.optimizer == "adamw" and accelerator.scaler is None
    return skips and accelerator.device.type == "cuda"


class Figures:
    """Named numbers that are computed, perhaps not yet, and copied to the host.

    Args:
        names: One for each value.
        values: float [len(names)].
    """

    def __init__(self, names: list[str], values: Tensor) -> None:
        self.names, self.on_device = names, values.detach()
        self.on_host, self.copied = self.on_device, None
        if values.device.type == "cuda":
            self.on_host = torch.empty_like(values, device="cpu", pin_memory=True)
            self.on_host.copy_(values, non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record()

    def not_finite(self, *names: str) -> Tensor:
        """1 if one of these is not finite, else 0; on the device, float []."""
        finite = [self.on_device[self.names.index(name)].isfinite() for name in names]
        return (~torch.stack(finite).all()).float()

    def read(self) -> dict[str, float]:
        """The numbers; waits for the device to have computed them."""
        if self.copied is not None:
            self.copied.synchronize()
        return dict(zip(self.names, self.on_host.tolist(), strict=True))


@dataclass(frozen=True)
class Update:
    """One update.

    Attributes:
        step: Its number, from 0.
        lr: Its learning rate.
        figures: What the model returned, the gradient's norm, whether a process is to stop.
    """

    step: int
    lr: float
    figures: Figures


@dataclass(frozen=True)
class Batch:
    """What the log says of one batch.

    Attributes:
        last: The last of its updates.
        seconds: From the request for the batch until the host was done with its last update.
        waited: Seconds of it until the batch was there.
    """

    last: Update
    seconds: float
    waited: float


class Snapshot:
    """A model after an update, while the next one already runs.

    Weights are the model's own: they change at the end of an update. Buffers (BatchNorm's running
    statistics) are copies: the next forward pass changes the model's.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self.buffers = {
            name: value.clone() for name, value in model.state_dict().items() if name not in weights
        }

    def take(self) -> None:
        """Copy the buffers, after an update and before the next forward pass."""
        live = self.model.state_dict()
        for floating in (True, False):  # one kernel for each, which takes one dtype
            names = [n for n, kept in self.buffers.items() if kept.is_floating_point() == floating]
            if names:
                torch._foreach_copy_([self.buffers[n] for n in names], [live[n] for n in names])

    def state_dict(self) -> dict[str, Tensor]:
        """The model's, as it was when the buffers were copied."""
        return {**self.model.state_dict(), **self.buffers}
