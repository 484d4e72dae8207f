"""Results of an update that are known only after the device has computed them.

The host launches kernels long before a GPU runs them. Reading a number makes the host wait, and
then the GPU waits for the host. So an update's metrics are read one update late, when they are
ready. Anything that must happen before the next update happens on the device: if the loss or a
gradient is not finite, the optimizer itself skips the update.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hgkd_edge.recipe_sections import TrainConfig

__all__ = ["Batch", "Figures", "Snapshot", "Update", "reads_late"]


def reads_late(accelerator: Accelerator, config: TrainConfig) -> bool:
    """Whether metrics are read one update late.

    Not on a CPU, where nothing needs to wait. Not with an optimizer that cannot skip an update on
    the device (LAMB), or one whose gradients are checked by a scaler (fp16).
    """
    skips = config.optimizer == "adamw" and accelerator.scaler is None
    return skips and accelerator.device.type == "cuda"


class Figures:
    """Named numbers that are copied to the host, and may not be computed yet.

    Args:
        names: One name per value.
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
        """1 if any value is not finite, else 0; on the device, float []."""
        finite = [self.on_device[self.names.index(name)].isfinite() for name in names]
        return (~torch.stack(finite).all()).float()

    def read(self) -> dict[str, float]:
        """The numbers; waits until the device has computed them."""
        if self.copied is not None:
            self.copied.synchronize()
        return dict(zip(self.names, self.on_host.tolist(), strict=True))


@dataclass(frozen=True)
class Update:
    """One update.

    Attributes:
        step: Its number, from 0.
        lr: Its learning rate.
        figures: The model's scalars, the gradient norm, and whether a process must stop.
    """

    step: int
    lr: float
    figures: Figures


@dataclass(frozen=True)
class Batch:
    """What is logged for one batch.

    Attributes:
        last: Its last update.
        seconds: Time from requesting the batch until the host finished its last update.
        waited: How many of those seconds were spent waiting for the batch.
    """

    last: Update
    seconds: float
    waited: float


class Snapshot:
    """A model after an update, while the next update is already running.

    Weights are the model's own: they change at the end of an update. Buffers (BatchNorm's running
    statistics) are copies, because the next forward pass changes the originals.
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
        for floating in (True, False):  # one kernel per kind of dtype
            names = [n for n, kept in self.buffers.items() if kept.is_floating_point() == floating]
            if names:
                torch._foreach_copy_([self.buffers[n] for n in names], [live[n] for n in names])

    def state_dict(self) -> dict[str, Tensor]:
        """The model's state dict as of the last buffer copy."""
        return {**self.model.state_dict(), **self.buffers}
