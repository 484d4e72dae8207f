"""Times complete updates of a distillation, through `hgkd_edge.engine.train`, as in `distill`."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.gpu.measure import Scale, peak
from hgkd_edge.data.sources import ImageSource
from hgkd_edge.distillation.loss import StudentWithLoss
from hgkd_edge.distillation.parts import Parts, build
from hgkd_edge.distillation.setup import make_model
from hgkd_edge.distillation.teacher import Teacher
from hgkd_edge.distillation.training import Distilling
from hgkd_edge.engine import Workplace, graph, train
from hgkd_edge.recipe import Recipe

__all__ = ["photo_tensor", "update_rows"]

MASKS = 4  # per teacher pass


class WithoutTeacher(Distilling):
    """Targets are zeros: measures an update without the teacher."""

    def _shared_targets(self, view: Tensor) -> Tensor:
        rows, columns = self.parts.token_grid
        return view.new_zeros(len(view), rows * columns, self.teacher.width)


def update_rows(
    student: str, scale: Scale, kinds: tuple[str, ...], *, teacher: bool
) -> Iterator[dict[str, Any]]:
    """Milliseconds of one update, `MASKS` of them per batch.

    Args:
        student: timm model.
        scale: Measurement scale.
        kinds: Some of `dense` (nothing masked, plain layers, channels-last) and `tiles`.
        teacher: Whether the teacher runs; its weights are random, which does not affect the time.
    """
    source = photo_tensor(scale)
    parts = build(_recipe(student, "tiles", "off", scale), download=False)
    vit = Teacher(parts.vit, layers="last", size=parts.teacher_size).to(scale.device)
    for kind in sorted(kinds, reverse=True):  # tiles first: dense makes the weights channels-last
        for mode in ("eager", "graph"):
            peak(scale, reset=True)
            recipe = _recipe(student, kind, mode, scale)
            kind_of_task = Distilling if teacher else WithoutTeacher
            ms, waiting = _train(
                recipe, kind_of_task(_student(recipe, parts, vit), vit, parts, recipe), source
            )
            yield {"student": student, "teacher": scale.teacher if teacher else None,
                   "masks": MASKS, "batch": scale.batch, "kind": kind, "mode": mode, "ms": ms,
                   "waiting": waiting, "peak_MiB": peak(scale)}  # fmt: skip


def photo_tensor(scale: Scale) -> ImageSource:
    """Random canvases in memory."""
    side, count = scale.size * 8 // 7, scale.batch * scale.batches
    return ImageSource(
        images=torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8),
        labels=torch.full((count,), -1),
        names=[str(i) for i in range(count)],
        classes=[],
        fingerprint="",
    )


def _recipe(student: str, kind: str, mode: str, scale: Scale) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "gpu",
            "data": {"source": "bundled", "image_size": scale.size},  # only the size is used
            "teacher": {"name": scale.teacher},
            "student": {"name": student},
            "mask": {"ratio": 0.6 if kind == "tiles" else 0.0, "per_image": MASKS},
            "train": {
                "epochs": 1,
                "batch_size": scale.batch,
                "warmup_epochs": 0,
                "precision": "bf16",
                "graph": "auto" if mode == "graph" else "off",
                "trackers": [],
            },
        }
    )


def _student(recipe: Recipe, parts: Parts, vit: Teacher) -> StudentWithLoss:
    model = make_model(recipe, parts, vit)
    return model if recipe.mask.ratio else model.to(memory_format=torch.channels_last)


def _refuse(why: str) -> None:
    """Replaces the function that prints why a pass is not captured."""
    raise RuntimeError(f"an eager pass would be measured as a graph: {why}")


def _train(recipe: Recipe, task: Distilling, source: ImageSource) -> tuple[float, float]:
    """Milliseconds per update and share of time waiting for images, skipping two batches."""
    with tempfile.TemporaryDirectory() as folder:
        place = Workplace(Path(folder) / "log.jsonl", Path(folder) / "last.pt")
        with mock.patch.object(graph, "_report", _refuse):
            train(task, source, recipe.train, seed=0, place=place, label="measuring")
        lines = [json.loads(line) for line in place.log_file.open()][2:]
    per_update = [1e3 * recipe.train.batch_size / line["images_per_s"] / MASKS for line in lines]
    return round(statistics.median(per_update), 3), lines[-1]["data_share"]
