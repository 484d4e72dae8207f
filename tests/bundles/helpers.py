"""Helpers of the bundle tests."""

from __future__ import annotations

from pathlib import Path

import torch

from hgkd_edge.data.sources import open_splits
from hgkd_edge.models.backbone import BackboneSpec, EmbeddingNet, create_features, save_backbone
from hgkd_edge.models.recalibrate import recalibrate_batchnorm
from hgkd_edge.recipe import Recipe
from hgkd_edge.rundir import RunDir
from tests.conftest import NARROW
from tests.tasks.helpers import SAMPLES

FRAME = (96, 128)
TASKS = ("classify", "segment", "detect")


def new_run(
    photos: Path,
    path: Path,
    name: str = "resnet18",
    *,
    stem_stride: int = 4,
    args: dict[str, list[int]] | None = None,
) -> RunDir:
    """A run whose backbone was never trained, but has BatchNorm statistics of real photos."""
    args = NARROW if args is None else args
    # A different mean and deviation per channel, so that swapped channels change the answers.
    spec = BackboneSpec(
        name, stem_stride, (64, 64), (0.48, 0.45, 0.4), (0.22, 0.25, 0.3), dict(args)
    )
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "data": {"source": "folder", "path": str(photos), "image_size": 64},
            "teacher": {"name": "vit_tiny_patch16_224", "weights": "pretrain"},
            "student": {"name": name, "args": args, "stem_stride": stem_stride},
        }
    )
    torch.manual_seed(0)
    run = RunDir.create(recipe, path)
    network = EmbeddingNet(create_features(name, stem_stride=stem_stride, args=args), spec)
    recalibrate_batchnorm(network, open_splits(recipe.data)["train"], spec)
    save_backbone(network.features, spec, run.backbone_file)
    return run


def real_images(task: str, photos: Path) -> list[Path]:
    """Photographs for a task, of several sizes and shapes."""
    if task == "classify":
        return sorted((photos / "test").rglob("*.webp"))[:6]
    folder = {"segment": "nuclei/images", "detect": "bccd/JPEGImages"}[task]
    return sorted((SAMPLES / folder).iterdir())[:6]
