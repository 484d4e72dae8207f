"""Checks whether a distillation works so far: the report of `distill --check`."""

from __future__ import annotations

from typing import Any

from torch import nn

from hgkd_edge.confidence import wilson
from hgkd_edge.data.sources import held_out_split
from hgkd_edge.distillation.loss import StudentWithLoss
from hgkd_edge.distillation.score import held_out_if_readable
from hgkd_edge.distillation.setup import Setup
from hgkd_edge.models.backbone import EmbeddingNet
from hgkd_edge.models.recalibrate import recalibrate_batchnorm
from hgkd_edge.models.student import dense_copy
from hgkd_edge.probe import embed, knn_top1

__all__ = ["check"]


def check(model: StudentWithLoss, setup: Setup, before: nn.Module) -> dict[str, Any]:
    """Evaluate a student by its predictions and, if the images are labeled, by its features.

    Args:
        model: The student in its current state.
        setup: The setup that it was trained with.
        before: The dense student that it started from.

    Returns:
        `held_out` as returned by `held_out_cosine`. With labeled images: `knn` and `knn_before`,
        the top-1 of the student and of `before`, and the interval `knn_ci95`. `signs` has one line
        per sign that it works, `doubts` one per sign that it does not.
    """
    result: dict[str, Any] = {"held_out": held_out_if_readable(model, setup)}
    signs: list[str] = []
    doubts: list[str] = []
    if held := result["held_out"]:
        low, high = held["gain_ci95"]
        line = (
            f"predicts teacher features of {held['photos']} held-out images with cosine "
            f"{held['student']:.3f}, the mean token with {held['mean_token']:.3f} (difference "
            f"{low:.3f} to {high:.3f}); what differs between images with correlation "
            f"{held['between_images']:.2f}"
        )
        (signs if low > 0 else doubts).append(line)
    name = held_out_split(setup.splits, labeled=True)
    if name is not None and setup.source.labeled:
        now = dense_copy(model.student.encoder)
        knn, start = (_knn(network, setup, name) for network in (now, before))
        count = len(setup.splits[name])
        low, high = wilson(knn, count)
        result |= {"knn": knn, "knn_before": start, "knn_ci95": (low, high), "split": name}
        line = (
            f"k-NN top-1 {100 * knn:.1f} % on {count} {name} images (95 % interval {100 * low:.1f} "
            f"to {100 * high:.1f} %), {100 * start:.1f} % before distillation"
        )
        (signs if low > start else doubts).append(line)
    return {**result, "signs": signs, "doubts": doubts}


def _knn(features: nn.Module, setup: Setup, split: str) -> float:
    """Top-1 of frozen features on a labeled split, with BatchNorm set to whole images."""
    train, test = setup.source, setup.splits[split]
    network = EmbeddingNet(features, setup.parts.spec)
    recalibrate_batchnorm(network, train, setup.parts.spec)
    network.eval()
    return knn_top1(*embed(network, train), *embed(network, test), classes=len(train.classes))
