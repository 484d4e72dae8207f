"""Detection: boxes with classes, from an anchor-free one-stage detector; its loss and its mAP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hgkd_edge.data.annotations import open_boxes
from hgkd_edge.data.sources import ImageSource
from hgkd_edge.engine import Draws, Training
from hgkd_edge.models.heads import Detector
from hgkd_edge.score_records import TaskScores
from hgkd_edge.tasks.answers import Detection
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
from hgkd_edge.tasks.pictures import draw_boxes, side_by_side
from hgkd_edge.tasks.precision_bootstrap import ScoredImage, precision_intervals
from hgkd_edge.tasks.suppression import THRESHOLD, box_iou, select_boxes

__all__ = ["ObjectDetection"]

LOWEST_SCORE = 0.05  # lowest score in average precision, as in torchvision's references


class ObjectDetection(PyramidTask, VisionTask):
    """The task, for `finetune`, `evaluate` and `export`."""

    name = "detect"
    output_names: tuple[str, ...] = ("boxes", "scores")
    metric = "map"

    def open_splits(self, config: FinetuneConfig) -> dict[str, ImageSource]:
        return labeled_share(open_boxes(config.data), config)

    def create(self, card: ModelCard) -> nn.Module:
        return Detector(card.backbone, len(card.classes))

    def learner(
        self, network: nn.Module, card: ModelCard, source: ImageSource, config: FinetuneConfig
    ) -> DetectTraining:
        return DetectTraining(network, card, config)

    def judge(
        self, answers: Iterable[Answers], card: ModelCard, pictures: Path | None = None
    ) -> TaskScores:
        """COCO's average precision in [0, 1]: `map` over IoU .5 to .95, `map50`, `per_class`.

        Computed by pycocotools, on the canvas; classes without a true box are skipped. `intervals`
        holds those of both means, by bootstrap over the images.
        """
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision(class_metrics=True, backend="pycocotools")
        metric.warn_on_many_detections = False
        extremes: Extremes[_Photo] = Extremes()
        scored: list[ScoredImage] = []
        for batch in answers:
            photos = list(_photos(batch))
            scored += [ScoredImage(*photo[1:]) for photo in photos]
            metric.update(
                [_tensors(photo.labels, photo.boxes, scores=photo.scores) for photo in photos],
                [_tensors(photo.truth[:, 0], photo.truth[:, 1:]) for photo in photos],
            )
            if pictures is not None:
                for photo in photos:
                    extremes.add(_f1(photo), photo)
        found = metric.compute()
        per_class = zip(
            found["classes"].reshape(-1).tolist(),
            found["map_per_class"].reshape(-1).tolist(),
            strict=True,
        )
        scores = TaskScores(
            map=max(0.0, found["map"].item()),  # -1: no true boxes
            map50=max(0.0, found["map_50"].item()),
            per_class={card.classes[i]: value for i, value in per_class if value >= 0},
            intervals=precision_intervals(scored, len(card.classes)),
        )
        if pictures is not None:
            scores.pictures = extremes.draw(
                lambda photo: _picture(photo, card.classes), pictures, self.name
            )
        return scores


class DetectTraining(Training):
    """Training: random views of images and their boxes."""

    def __init__(self, network: nn.Module, card: ModelCard, config: FinetuneConfig) -> None:
        self.model: nn.Module = DetectLoss(network)
        self.layer_decay: float | None = config.train.layer_decay
        self.spec, self.options = card.backbone, config.detect
        self.flip = config.data.flip

    def inputs(self, images: Tensor, labels: Tensor, draws: Draws) -> Iterator[tuple[Tensor, ...]]:
        views, zoom = random_views(images, draws, self.spec, self.options, flip=self.flip)
        yield views, zoom.boxes(labels, self.spec.size)


class DetectLoss(WithLoss):
    """FCOS's sum of focal loss, generalized IoU and centerness."""

    def forward(self, images: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """Losses of images f[B, 3, H, W] and boxes f[B, M, 5] (see `Detector.losses`)."""
        losses = self.network.losses(images, boxes)  # type: ignore[operator]
        return {"loss": sum(losses.values()), **{k: v.detach() for k, v in losses.items()}}


class _Photo(NamedTuple):
    """One image: its true boxes float [m, 5] with classes, and the detected boxes."""

    image: Tensor
    truth: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


def _photos(batch: Answers) -> Iterator[_Photo]:
    outputs = zip(batch.outputs["boxes"], batch.outputs["scores"], strict=True)
    for image, rows, (boxes, scores) in zip(
        batch.images, batch.labels.numpy(), outputs, strict=True
    ):
        found = select_boxes(boxes, scores, threshold=LOWEST_SCORE)
        yield _Photo(image, rows[rows[:, 0] >= 0], *found)


def _tensors(labels: np.ndarray, boxes: np.ndarray, **more: np.ndarray) -> dict[str, Tensor]:
    """The boxes in torchmetrics' format."""
    arrays = {"labels": labels.astype(np.int64), "boxes": boxes, **more}
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def _f1(photo: _Photo) -> float:
    """Harmonic mean of precision and recall of boxes above the threshold, at IoU 0.5."""
    count = int((photo.scores >= THRESHOLD).sum())
    if count == len(photo.truth) == 0:
        return 1.0
    overlap = box_iou(photo.boxes[:count], photo.truth[:, 1:])  # [count, m], best score first
    overlap[photo.labels[:count, None] != photo.truth[None, :, 0]] = 0
    hits = 0
    for row in overlap:
        if len(row) and row.max() >= 0.5:
            overlap[:, row.argmax()] = 0  # one box for one object
            hits += 1
    return 2 * hits / (count + len(photo.truth))


def _picture(photo: _Photo, classes: Sequence[str]) -> Image.Image:
    """The image with its true boxes, next to the image with the detected boxes."""
    image = to_photo(photo.image)
    true = [Detection(classes[int(row[0])], 1.0, tuple(row[1:].tolist())) for row in photo.truth]
    found = [
        Detection(classes[label], float(score), tuple(box.tolist()))
        for box, label, score in zip(photo.boxes, photo.labels, photo.scores, strict=True)
        if score >= THRESHOLD
    ]
    return side_by_side(
        [draw_boxes(image, true, classes, scored=False), draw_boxes(image, found, classes)]
    )
