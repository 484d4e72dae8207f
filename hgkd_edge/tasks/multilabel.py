"""Multi-label classification: several labels per image or none, each decided by itself.

The network is that of classification, with a sigmoid instead of a softmax behind it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hgkd_edge.data.sources import ImageSource
from hgkd_edge.score_records import TaskScores
from hgkd_edge.tasks.answers import sigmoid
from hgkd_edge.tasks.augment import mixing
from hgkd_edge.tasks.base import Answers, ModelCard
from hgkd_edge.tasks.classify import Classification, Classifier, ClassifyTraining
from hgkd_edge.tasks.config import ClassifyConfig, FinetuneConfig
from hgkd_edge.tasks.label_scores import score_labels

__all__ = ["MultiLabel", "MultiLabelTraining"]


class MultiLabelTraining(ClassifyTraining):
    """Training: augmented, optionally mixed images and the shares of their labels."""

    def with_loss(
        self, network: nn.Module, source: ImageSource, options: ClassifyConfig
    ) -> nn.Module:
        weight = _positive_weights(source.labels) if options.balance else None
        return MultiLabelClassifier(network, options.label_smoothing, weight)

    def mixed(self, view: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        targets = labels.float()
        if (mix := mixing(self.options, len(view))) is not None:
            # With each image as one class, the soft labels are the shares of the mixed images.
            view, shares = mix(view, torch.arange(len(view), device=view.device))
            targets = shares @ targets
        return view, targets


class MultiLabel(Classification):
    """The task, for `finetune`, `evaluate` and `export`."""

    name = "multilabel"
    output_names: tuple[str, ...] = ("label_logits",)
    metric = "mean_ap"

    def adapt(self, splits: dict[str, ImageSource]) -> None:
        """One class per image is taken as a single label."""
        for source in splits.values():
            if not source.multi_hot:
                classes = torch.arange(len(source.classes))
                source.labels = (source.labels[:, None] == classes).to(torch.int8)

    def training(
        self, network: nn.Module, card: ModelCard, source: ImageSource, config: FinetuneConfig
    ) -> MultiLabelTraining:
        return MultiLabelTraining(network, card, source, config)

    def judge(
        self, answers: Iterable[Answers], card: ModelCard, pictures: Path | None = None
    ) -> TaskScores:
        """As `score_labels`, at the card's threshold."""
        assert card.threshold is not None, "FinetuneConfig and read_model set it"
        pairs = [(batch.outputs["label_logits"], batch.labels.numpy()) for batch in answers]
        logits, labels = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
        decided = sigmoid(logits) >= card.threshold
        return score_labels(logits, decided, labels > 0, card.classes)


class MultiLabelClassifier(Classifier):
    """A network with its loss; `weight` is that of every class's positive images."""

    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Binary cross-entropy of images f[B, 3, H, W] and shares of labels f[B, classes]."""
        logits = self.network(images).float()
        targets = targets * (1 - self.smoothing) + self.smoothing / 2
        loss = F.binary_cross_entropy_with_logits(
            logits,
            targets,
            pos_weight=self.weight,  # type: ignore[arg-type]
        )
        return {"loss": loss}


def _positive_weights(labels: Tensor) -> Tensor:
    """Images without a label, per image with it, of every class, float [classes]."""
    counts = labels.sum(dim=0, dtype=torch.int64).clamp(min=1)
    return (len(labels) - counts).clamp(min=1) / counts
