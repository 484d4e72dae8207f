"""Segmentation: a class for every pixel; its loss and its mIoU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from hgkd_edge.data.annotations import open_masks
from hgkd_edge.data.resize import IGNORED
from hgkd_edge.data.sources import ImageSource
from hgkd_edge.engine import Draws, Training
from hgkd_edge.models.heads import Segmenter
from hgkd_edge.score_records import TaskIntervals, TaskScores
from hgkd_edge.tasks.base import Answers, ModelCard, VisionTask
from hgkd_edge.tasks.config import FinetuneConfig
from hgkd_edge.tasks.dense import (
    Extremes,
    PyramidTask,
    WithLoss,
    labeled_share,
    random_views,
    to_photo,
)
from hgkd_edge.tasks.pictures import draw_segments, side_by_side

__all__ = ["Segmentation"]

RESAMPLES = 1000  # bootstrap resamples


class Segmentation(PyramidTask, VisionTask):
    """The task, for `finetune`, `evaluate` and `export`."""

    name = "segment"
    output_names: tuple[str, ...] = ("logits",)
    metric = "miou"

    def open_splits(self, config: FinetuneConfig) -> dict[str, ImageSource]:
        options = config.segment
        splits = open_masks(
            config.data, binary=options.binary, codes=options.codes, ignore=options.ignore
        )
        return labeled_share(splits, config)

    def create(self, card: ModelCard) -> nn.Module:
        return Segmenter(card.backbone, len(card.classes))

    def learner(
        self, network: nn.Module, card: ModelCard, source: ImageSource, config: FinetuneConfig
    ) -> SegmentTraining:
        return SegmentTraining(network, card, config)

    def judge(
        self, answers: Iterable[Answers], card: ModelCard, pictures: Path | None = None
    ) -> TaskScores:
        """`miou`, `per_class` IoU, `pixel_accuracy`, all in [0, 1] and on the canvas; `confusion`.

        `intervals` holds that of the mIoU, by bootstrap over the images. Classes that appear in
        neither truth nor answer are excluded from the mean; it is 0 if every pixel is ignored.
        """
        classes = len(card.classes)
        confusion = np.zeros((classes, classes), np.int64)  # [true, predicted]
        extremes: Extremes[tuple[Tensor, np.ndarray, np.ndarray]] = Extremes()
        counts: list[np.ndarray] = []  # of each image, [3, K]: pixels in common, true, predicted
        for batch in answers:
            predicted = batch.outputs["logits"].argmax(axis=1).astype(np.uint8)  # [B, H, W]
            for image, truth, answer in zip(
                batch.images, batch.labels.numpy(), predicted, strict=True
            ):
                own = _confusion(truth, answer, classes)
                confusion += own
                counts.append(np.stack([own.diagonal(), own.sum(axis=1), own.sum(axis=0)]))
                if pictures is not None and own.any():
                    extremes.add(float(np.nanmean(_iou(own))), (image, truth, answer))
        iou = _iou(confusion)
        scores = TaskScores(
            miou=float(np.nanmean(iou)) if confusion.any() else 0.0,  # JSON has no NaN
            pixel_accuracy=float(confusion.trace() / max(1, confusion.sum())),
            per_class={
                name: float(value)
                for name, value in zip(card.classes, iou, strict=True)
                if not np.isnan(value)
            },
            confusion=confusion.tolist(),
            intervals=TaskIntervals(miou=miou_interval(np.stack(counts))),
        )
        if pictures is not None:
            scores.pictures = extremes.draw(_picture, pictures, self.name)
        return scores


class SegmentTraining(Training):
    """Training: random views of images and their label maps."""

    def __init__(self, network: nn.Module, card: ModelCard, config: FinetuneConfig) -> None:
        self.model: nn.Module = SegmentLoss(network)
        self.layer_decay: float | None = config.train.layer_decay
        self.spec, self.options = card.backbone, config.segment
        self.flip = config.data.flip

    def inputs(self, images: Tensor, labels: Tensor, draws: Draws) -> Iterator[tuple[Tensor, ...]]:
        views, zoom = random_views(images, draws, self.spec, self.options, flip=self.flip)
        yield views, zoom.labels(labels)


class SegmentLoss(WithLoss):
    """Cross-entropy per pixel and Dice per class.

    Dice (Milletari et al. 2016, arXiv 1606.04797, section 3) evaluates a class as a whole: a rare
    class counts as much as the background.
    """

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Losses of images f[B, 3, H, W] and labels int64 [B, H, W]; 255 is ignored."""
        logits = self.network(images).float()  # [B, K, H, W]
        known = labels != IGNORED
        summed = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        cross_entropy = summed / known.sum().clamp(min=1)
        dice = _dice_loss(logits.softmax(dim=1), labels, known)
        return {
            "loss": cross_entropy + dice,
            "cross_entropy": cross_entropy.detach(),
            "dice": dice.detach(),
        }


def _dice_loss(probability: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """1 - Dice, averaged over the classes in the batch.

    Args:
        probability: f[B, K, H, W].
        labels: int64 [B, H, W].
        known: bool [B, H, W], where labels count.
    """
    classes = probability.shape[1]
    truth = F.one_hot(labels.where(known, 0), classes).movedim(-1, 1) * known[:, None]
    probability = probability * known[:, None]
    axes = (0, 2, 3)
    common = (probability * truth).sum(axes)  # [K]
    total = probability.sum(axes) + truth.sum(axes)
    present = truth.sum(axes) > 0
    dice = (2 * common + 1) / (total + 1)
    return torch.where(present, 1 - dice, 0).sum() / present.sum().clamp(min=1)


def _confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts int [true, predicted] of one image's pixels."""
    known = truth < classes  # excludes 255 and classes that the model lacks
    cells = truth[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def _iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of every class, float [classes]; NaN if it does not occur."""
    common = confusion.diagonal()
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - common
    return np.where(union > 0, common / np.maximum(union, 1), np.nan)


def miou_interval(counts: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mIoU, by percentile bootstrap over images (Efron 1979).

    Args:
        counts: int [n, 3, K]: of each image, pixels of every class in common, true and predicted.
    """
    n, _, classes = counts.shape
    flat, draws = counts.reshape(n, -1).astype(np.float64), np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES):
        weights = np.bincount(draws.integers(0, n, n), minlength=n)
        common, true, predicted = (weights @ flat).reshape(3, classes)
        union = true + predicted - common
        seen = union > 0
        means.append((common[seen] / union[seen]).mean() if seen.any() else 0.0)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _picture(item: tuple[Tensor, np.ndarray, np.ndarray]) -> Image.Image:
    """The image, its true label map and the answer."""
    image, truth, answer = item
    photo = to_photo(image)
    answer = np.where(truth == IGNORED, IGNORED, answer)
    return side_by_side([photo, draw_segments(photo, truth), draw_segments(photo, answer)])
