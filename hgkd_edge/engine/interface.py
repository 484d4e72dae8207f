"""What a training command provides to the loop, and what the loop passes to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from hgkd_edge.data.to_device import to_device

__all__ = ["Draws", "Inputs", "Observation", "Training", "Watch", "Workplace"]

Inputs = tuple[Tensor | float, ...]


class Training(Protocol):
    """What a training command provides to the loop.

    Attributes:
        model: The trained module; `model(*inputs)` returns scalars by name, including "loss".
        updates_per_batch: Number of updates that `inputs` makes from one batch.
        layer_decay: Learning rate factor per group of layers below the head, in timm's grouping;
            None trains every layer at the same rate.
        capturable: Whether a pass of the model reads no tensor value on the host, so that it can
            run as a CUDA graph.
    """

    model: nn.Module
    updates_per_batch: int = 1
    layer_decay: float | None = None
    capturable: bool = False

    def inputs(self, images: Tensor, labels: Tensor, draws: Draws) -> Iterable[Inputs]:
        """Inputs of the model, one tuple per update: tensors [B, ...], and numbers for all images.

        Args:
            images: uint8 [B, 3, H_canvas, W_canvas] on the device.
            labels: int64 [B], -1 where unlabeled; other tasks use label maps or boxes [B, ...].
            draws: This step's random numbers.
        """
        ...


@dataclass
class Draws:
    """Random numbers of one step, drawn for the global batch and sliced to this process's share.

    Drawn on the CPU, so that they are the same on every device and for any number of processes.

    `progress` is the share of the training done before this step, in [0, 1). `photos` are the
    indices of this process's images in their source, int64 [B] on the CPU.
    """

    generator: torch.Generator
    rank: int
    world: int
    device: torch.device
    progress: float = 0.0
    photos: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    @classmethod
    def same_each_time(cls, seed: int, device: torch.device) -> Draws:
        """Of one process outside training: a score is comparable to the one before."""
        return cls(torch.Generator().manual_seed(seed), rank=0, world=1, device=device)

    def uniform(self, count: int, width: int) -> Tensor:
        """float32 [count, width] in [0, 1), for `count` images on this process."""
        return to_device(self.on_cpu(count, width), self.device)

    def on_cpu(self, count: int, width: int) -> Tensor:
        """Like `uniform`, but for host computations: reading from a GPU would wait for it."""
        draws = torch.rand(count * self.world, width, generator=self.generator)
        return draws[self.rank * count : (self.rank + 1) * count]


@dataclass(frozen=True)
class Observation:
    """What a model in training scores on held-out images.

    Attributes:
        scores: By name, for the log and the trackers.
        text: The scores for the progress line.
        pictures: Name -> float [B, 3, H, W] in [0, 1], for TensorBoard.
    """

    scores: Mapping[str, float]
    text: str = ""
    pictures: Mapping[str, Tensor] = field(default_factory=dict)


Watch = Callable[[nn.Module], Observation]


@dataclass(frozen=True)
class Workplace:
    """Where a training writes, and the names that its error messages use for user settings.

    Attributes:
        log_file: One JSON object per batch.
        checkpoint_file: The state to resume from.
        tracker_dir: Folder of TensorBoard's events; None disables all trackers.
        resume_command: The command that resumes the training.
        batch_key: Name of the batch size setting.
        lr_key: Name of the learning rate setting.
    """

    log_file: Path
    checkpoint_file: Path
    tracker_dir: Path | None = None
    resume_command: str = ""
    batch_key: str = "train.batch_size"
    lr_key: str = "train.lr"
