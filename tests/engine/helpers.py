"""Trainings small enough to inspect: classifiers of 40 random images of 4x4 pixels."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hgkd_edge.data.sources import ImageSource
from hgkd_edge.engine import Draws, Inputs, Workplace, train
from hgkd_edge.recipe_sections import TrainConfig

exact_on_a_cpu = pytest.mark.skipif(
    torch.cuda.is_available(),
    reason="a GPU adds some numbers in any order: no two runs are the same to the last bit",
)


class Classify:
    """A task without BatchNorm or dropout: its gradient is the mean of its parts' gradients."""

    updates_per_batch = 1
    capturable = True
    layer_decay: float | None = None

    def __init__(self, *, spoil_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = Net(spoil_at)

    def inputs(self, images: Tensor, labels: Tensor, draws: Draws) -> Iterator[tuple[Tensor, ...]]:
        noise = draws.uniform(len(images), 1)[..., None, None]
        yield images.float() / 255 + 0.1 * noise, labels


class Net(nn.Module):
    def __init__(self, spoil_at: int | None) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.GELU(), nn.Linear(16, 3))
        self.spoil_at, self.calls = spoil_at, 0

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        loss = nn.functional.cross_entropy(self.layers(images), labels)
        return {"loss": loss * (math.nan if self.calls == self.spoil_at else 1.0)}


class Masks:
    """A task with BatchNorm, and two updates per batch.

    Args:
        spoil: What is not finite in update `at`, counted from 1: the images, the loss, or the
            gradient alone.
        changes: Share of the training after which a value common to all images changes.
    """

    updates_per_batch = 2
    capturable = True
    layer_decay: float | None = None

    def __init__(self, *, spoil: str = "", at: int = -1, changes: float = 1.0) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = MaskedNet(spoil, at)
        self.spoil, self.at, self.changes, self.updates = spoil, at, changes, 0

    def inputs(self, images: Tensor, labels: Tensor, draws: Draws) -> Iterator[Inputs]:
        for _ in range(2):
            self.updates += 1
            noise = draws.uniform(len(images), 1)[..., None, None]
            if self.spoil == "images" and self.updates == self.at:
                noise = noise * math.nan
            sharpness = 1 if draws.progress < self.changes else 2
            yield images.float() / 255 + 0.1 * noise, labels, sharpness


class MaskedNet(nn.Module):
    def __init__(self, spoil: str, at: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.GELU(),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(32, 3),
        )
        self.spoil, self.at, self.calls = spoil, at, 0
        self.layers[0].weight.register_hook(self._spoil_gradient)

    def forward(self, images: Tensor, labels: Tensor, sharpness: int) -> dict[str, Tensor]:
        self.calls += 1
        logits = sharpness * self.layers(images)
        loss = nn.functional.cross_entropy(logits, labels)
        if self.spoil == "loss" and self.calls == self.at:
            loss = loss * math.nan
        return {"loss": loss, "confidence": logits.softmax(1).amax(1).mean()}

    def _spoil_gradient(self, grad: Tensor) -> Tensor:
        return grad * math.inf if self.spoil == "gradient" and self.calls == self.at else grad


def tiny_source() -> ImageSource:
    generator = torch.Generator().manual_seed(0)
    return ImageSource(
        images=torch.randint(0, 256, (40, 3, 4, 4), dtype=torch.uint8, generator=generator),
        labels=torch.arange(40) % 3,
        names=[str(i) for i in range(40)],
        classes=["a", "b", "c"],
        fingerprint="",
    )


def config(**more: Any) -> TrainConfig:
    base = {"epochs": 4, "batch_size": 8, "warmup_epochs": 1, "precision": "fp32", "lr": 1e-2}
    return TrainConfig.model_validate({**base, **more})


def place(folder: Path) -> Workplace:
    return Workplace(
        folder / "log.jsonl", folder / "checkpoints" / "last.pt", resume_command="again"
    )


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def run(task: Any, source: ImageSource, folder: Path, *, resume: bool = False, **more: Any) -> Any:
    return train(
        task, source, config(**more), seed=1, place=place(folder), label="test", resume=resume
    )


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """The log without its times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("images_per_s", "data_share")} for line in lines
    ]


def saved(folder: Path) -> dict[str, Any]:
    return torch.load(place(folder).checkpoint_file, weights_only=True)


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit, through nested containers."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other
