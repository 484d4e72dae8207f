"""A training small enough to look into: a linear classifier on 40 random photos of 4x4 pixels."""

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
from hgkd_edge.engine import Draws, Workplace, train
from hgkd_edge.recipe import TrainConfig

exact_on_a_cpu = pytest.mark.skipif(
    torch.cuda.is_available(),
    reason="a GPU adds some numbers in any order: no two runs are the same to the last bit",
)


class Classify:
    """A task without BatchNorm or dropout: its gradient is the mean of its parts' gradients."""

    updates_per_batch = 1
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
