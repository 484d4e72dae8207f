"""Held-out scores and pictures of a student while it is trained; cheap, on samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hgkd_edge.console import console
from hgkd_edge.data.sources import ImageSource, held_out_split
from hgkd_edge.distillation.loss import StudentWithLoss
from hgkd_edge.distillation.previews import preview_panels
from hgkd_edge.distillation.setup import Setup
from hgkd_edge.engine import Observation
from hgkd_edge.knn_and_probe import embed, knn_top1
from hgkd_edge.models.backbone import EmbeddingNet
from hgkd_edge.models.recalibrate import recalibrate_batchnorm
from hgkd_edge.models.student import dense_copy

__all__ = ["Onlooker"]

LEARNED_FROM, SCORED = 1024, 512  # images of the k-NN
BATCHES = 4  # of 128 images, for BatchNorm's statistics


class Onlooker:
    """Scores a student in training: a function of the model, as `engine.train` takes it.

    k-NN top-1 on held-out images, where images have labels; the cosine of predicted and true
    features of a few held-out images, and their panels. The scores at the end of a run are of all
    images.

    Args:
        setup: The setup that the student is trained with.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.split = held_out_split(setup.splits, labeled=True)
        if setup.source.multi_hot:
            console.print(
                "k-NN is skipped: it takes one class per image, these have several labels"
            )

    def __call__(self, model: nn.Module) -> Observation:
        """Look at a model.

        Raises:
            DataError: Images that are decoded on demand cannot be read.
        """
        assert isinstance(model, StudentWithLoss)
        scores: dict[str, float] = {}
        if self.split is not None and self.setup.source.one_class:
            scores["knn"] = self._knn(model, self.setup.splits[self.split])
        pictures: dict[str, Tensor] = {}
        if self.setup.recipe.loss.feature_weight:
            panels, cosines = self._previews(model)
            pictures["image, visible, teacher, student, cosine"] = _sheet(panels)
            if held_out_split(self.setup.splits) is not None:
                scores["held_out_cosine"] = sum(cosines) / len(cosines)
        names = {"knn": "k-NN", "held_out_cosine": "cosine"}
        text = "  ".join(f"{names[key]} {value:.3f}" for key, value in scores.items())
        return Observation(scores, text, pictures)

    def _knn(self, model: StudentWithLoss, held_out: ImageSource) -> float:
        source, spec = self.setup.source.sample(LEARNED_FROM), self.setup.parts.spec
        test = held_out.sample(SCORED)
        network = EmbeddingNet(dense_copy(model.student.encoder), spec)
        recalibrate_batchnorm(network, source, spec, batches=BATCHES)
        known, asked = embed(network.eval(), source), embed(network, test)
        return knn_top1(*known, *asked, classes=len(source.classes))

    def _previews(self, model: StudentWithLoss) -> tuple[dict[str, Tensor], list[float]]:
        teacher = self.setup.teacher
        home = next(teacher.parameters()).device  # the CPU, where its targets are cached
        teacher.to(next(model.parameters()).device)
        try:
            panels, cosines, _ = preview_panels(model, self.setup)
        finally:
            teacher.to(home)
        return panels, cosines


def _sheet(panels: dict[str, Tensor]) -> Tensor:
    """One row of panels for each image: float [1, 3, B * H, panels * W]."""
    size = panels["image"].shape[-2:]
    rows = [F.interpolate(each.float(), size) for each in panels.values()]
    return torch.cat(list(torch.cat(rows, dim=-1)), dim=-2)[None].clamp(0, 1)
