"""What a training verb brings to the loop, and what it is handed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from hgkd_edge.data.transfer import to_device

__all__ = ["Draws", "Inputs", "Training", "Workplace"]

Inputs = tuple[Tensor | float, ...]


class Training(Protocol):
    """What a training verb brings to the loop.

    Attributes:
        model: The trained module; `model(*inputs)` returns scalars by name, "loss" among them.
        updates_per_batch: How many updates `inputs` makes of one batch.
        layer_decay: Factor of the learning rate per group of layers below the head, as timm groups
            them; None trains every layer at one rate.
        capturable: Whether a pass of the model reads no value of a tensor on the host, so that it
            may run as a CUDA graph.
    """

    model: nn.Module
    updates_per_batch: int = 1
    layer_decay: float | None = None
    capturable: bool = False

    def inputs(self, images: Tensor, labels: Tensor, draws: Draws) -> Iterable[Inputs]:
        """Inputs of the model, one tuple per update: tensors [B, ...], and numbers for all images.

        Args:
            images: uint8 [B, 3, H_canvas, W_canvas] on the device.
            labels: int64 [B], -1 where unlabelled; label maps or boxes [B, ...] of other tasks.
            draws: This step's random numbers.
        """
        ...


@dataclass
class Draws:
    """Random numbers of one step, drawn for the global batch and cut to this process's share.

    Drawn on the CPU, so that every device and every number of processes sees the same ones.

    `progress` is the share of the training that lies behind this step, in [0, 1); `photos` are the
    numbers of this process's photos of the batch in their source, int64 [B] on the CPU.
    """

    generator: torch.Generator
    rank: int
    world: int
    device: torch.device
    progress: float = 0.0
    photos: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def uniform(self, count: int, width: int) -> Tensor:
        """float32 [count, width] in [0, 1), for `count` images on this process."""
        return to_device(self.on_cpu(count, width), self.device)

    def on_cpu(self, count: int, width: int) -> Tensor:
        """As `uniform`, for what the host computes: fetching numbers from a GPU waits for it."""
        draws = torch.rand(count * self.world, width, generator=self.generator)
        return draws[self.rank * count : (self.rank + 1) * count]


@dataclass(frozen=True)
class Workplace:
    """Where a training writes, and how its errors call what the user can change.

    Attributes:
        log_file: One JSON object per batch.
        checkpoint_file: The state to go on from.
        tracker_dir: Folder of TensorBoard's events; None for no tracker at all.
        resume_command: What a user types to go on.
        batch_key: Setting of the batch size.
        lr_key: Setting of the learning rate.
    """

    log_file: Path
    checkpoint_file: Path
    tracker_dir: Path | None = None
    resume_command: str = ""
    batch_key: str = "train.batch_size"
    lr_key: str = "train.lr"
