"""Checks whether a distillation works so far: the report of `distill --check`."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from hgkd_edge.cells import counted
from hgkd_edge.confidence import wilson
from hgkd_edge.data.sources import ImageSource, held_out_split
from hgkd_edge.distillation.held_out import held_out_if_readable, not_better_than_the_mean
from hgkd_edge.distillation.loss import StudentWithLoss
from hgkd_edge.distillation.setup import Setup
from hgkd_edge.distillation.watching import LEARNED_FROM, SCORED
from hgkd_edge.knn_and_probe import embed, knn_top1
from hgkd_edge.manifest_record import HeldOutOrNone
from hgkd_edge.models.backbone import EmbeddingNet
from hgkd_edge.models.recalibrate import recalibrate_batchnorm
from hgkd_edge.models.student import dense_copy
from hgkd_edge.records import Record

__all__ = ["Checked", "check"]


class Checked(Record):
    """Whether a distillation works so far.

    Attributes:
        held_out: Its predictions of held-out images.
        knn: k-NN top-1 of its features; this and the next three are set for labeled images.
        knn_before: That of the student that it started from.
        knn_ci95: The 95 % interval of `knn`.
        split: The images of `knn`.
        signs: One line per sign that it works.
        doubts: One line per sign that it does not.
        images_per_s: Rate of the training.
        hours: Of the whole run at this rate.
    """

    held_out: HeldOutOrNone = None
    knn: float | None = None
    knn_before: float | None = None
    knn_ci95: tuple[float, float] | None = None
    split: str = ""
    signs: list[str] = Field(default_factory=list)
    doubts: list[str] = Field(default_factory=list)
    images_per_s: float
    hours: float


def check(
    model: StudentWithLoss, setup: Setup, before: nn.Module, *, images_per_s: float
) -> Checked:
    """Evaluate a student by its predictions and, if the images are labeled, by its features.

    Args:
        model: The student in its current state.
        setup: The setup that it was trained with.
        before: The dense student that it started from.
        images_per_s: Rate of its training.
    """
    held_out = held_out_if_readable(model, setup)
    found = Checked(
        held_out=held_out,
        signs=[],
        doubts=[],
        images_per_s=images_per_s,
        hours=setup.recipe.train.epochs * len(setup.source) / images_per_s / 3600,
    )
    if held_out is not None:
        low, high = held_out.gain_bounds
        line = (
            f"predicts teacher features of {counted(held_out.photos, 'held-out image')} with "
            f"cosine {held_out.student:.3f}, the mean token with {held_out.mean_token:.3f} "
            f"(difference {low:.3f} to {high:.3f}); what differs between images with correlation "
            f"{held_out.between_images:.2f}"
        )
        (found.doubts if not_better_than_the_mean(held_out) else found.signs).append(line)
    name = held_out_split(setup.splits, labeled=True)
    if name is not None and setup.source.one_class:
        now = dense_copy(model.student.encoder)
        before.to(next(now.parameters()).device)
        test = setup.splits[name].sample(SCORED)
        knn, start = (_knn(network, setup, test) for network in (now, before))
        count = len(test)
        low, high = wilson(knn, count)
        found.knn, found.knn_before, found.knn_ci95, found.split = knn, start, (low, high), name
        line = (
            f"k-NN top-1 {100 * knn:.1f} % on {counted(count, name + ' image')} (95 % interval "
            f"{100 * low:.1f} to {100 * high:.1f} %), {100 * start:.1f} % before distillation"
        )
        (found.signs if low > start else found.doubts).append(line)
    return found


def _knn(features: nn.Module, setup: Setup, test: ImageSource) -> float:
    """Top-1 of frozen features on labeled images, with BatchNorm set to whole images."""
    train = setup.source.sample(LEARNED_FROM)
    network = EmbeddingNet(features, setup.parts.spec)
    recalibrate_batchnorm(network, train, setup.parts.spec)
    network.eval()
    return knn_top1(*embed(network, train), *embed(network, test), classes=len(train.classes))
