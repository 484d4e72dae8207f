"""`data.flip: false` reaches the trainings that make views: no image is mirrored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from hgkd_edge.distillation.parts import build
from hgkd_edge.distillation.pretrain import LabelTuning, pretraining
from hgkd_edge.distillation.setup import make_model, make_teacher
from hgkd_edge.distillation.training import Distilling
from hgkd_edge.engine import Draws, Training
from hgkd_edge.models.backbone import BackboneSpec
from hgkd_edge.recipe import Recipe
from hgkd_edge.tasks.base import ModelCard
from hgkd_edge.tasks.classify import ClassifyTraining
from hgkd_edge.tasks.config import FinetuneConfig
from hgkd_edge.tasks.detect import DetectTraining
from hgkd_edge.tasks.segment import SegmentTraining

COUNT = 16


def bright_on_the_left() -> Tensor:
    """Canvases uint8 [B, 3, 73, 73] whose left half is white and whose right half is black."""
    images = torch.zeros(COUNT, 3, 73, 73, dtype=torch.uint8)
    images[..., :36] = 255
    return images


def distilling(recipe: Recipe) -> Training:
    parts = build(recipe)
    teacher = make_teacher(recipe, parts)
    return Distilling(make_model(recipe, parts, teacher), teacher, parts, recipe)


def pretrained(recipe: Recipe) -> Training:
    parts = build(recipe)
    return pretraining(parts.vit, recipe, parts.teacher_size)[0]


def ibot(recipe: Recipe) -> Training:
    pytest.importorskip("lightly")
    pretrain = recipe.teacher.pretrain.model_copy(update={"objective": "ibot"})
    teacher = recipe.teacher.model_copy(update={"pretrain": pretrain})
    return pretrained(recipe.model_copy(update={"teacher": teacher}))


def label_tuning(recipe: Recipe) -> Training:
    return LabelTuning(nn.Identity(), recipe, (64, 64))  # type: ignore[arg-type]


def finetuned(task: str, training: Callable[..., Training]) -> Callable[[Recipe], Training]:
    def make(recipe: Recipe) -> Training:
        spec = BackboneSpec("resnet18", 4, (64, 64), (0.5,) * 3, (0.5,) * 3)
        card = ModelCard(task, ("a", "b"), spec)
        config = FinetuneConfig(
            task=task,  # type: ignore[arg-type]
            backbone=Path("backbone.safetensors"),
            data=recipe.data,
            classify={"augment": "none", "mixup": 0},  # type: ignore[arg-type]
        )
        source = [None] if task == "classify" else []
        network = timm.create_model("test_resnet", num_classes=2)
        return training(network, card, *source, config)

    return make


TRAININGS = {
    "distill": distilling,
    "mae": pretrained,
    "ibot": ibot,
    "labels": label_tuning,
    "classify": finetuned("classify", ClassifyTraining),
    "segment": finetuned("segment", SegmentTraining),
    "detect": finetuned("detect", DetectTraining),
}


@pytest.mark.parametrize("make", TRAININGS.values(), ids=TRAININGS.keys())
def test_without_flips_left_stays_left(
    tiny_recipe: dict[str, Any], make: Callable[[Recipe], Training]
) -> None:
    labels = {
        TRAININGS["classify"]: torch.zeros(COUNT, dtype=torch.int64),
        TRAININGS["segment"]: torch.zeros(COUNT, 73, 73, dtype=torch.uint8),
        TRAININGS["detect"]: torch.zeros(COUNT, 1, 5),
    }

    def mirrored(flip: bool) -> int:
        tiny_recipe["data"]["flip"] = flip
        training = make(Recipe.model_validate(tiny_recipe))
        draws = Draws(torch.Generator().manual_seed(0), 0, 1, torch.device("cpu"), 0.0)
        inputs = training.inputs(bright_on_the_left(), labels.get(make, torch.zeros(COUNT)), draws)
        views = [x.flatten(0, -4) for x in next(iter(inputs)) if is_images(x)]
        return sum(int(is_mirrored(each).sum()) for each in views)

    assert mirrored(flip=False) == 0
    assert 0 < mirrored(flip=True) < COUNT * 4


def is_images(given: Any) -> bool:
    return isinstance(given, Tensor) and given.dim() > 3 and given.shape[-3] == 3


def is_mirrored(views: Tensor) -> Tensor:
    left, right = views.chunk(2, dim=-1)
    return left.mean(dim=(1, 2, 3)) < right.mean(dim=(1, 2, 3))
