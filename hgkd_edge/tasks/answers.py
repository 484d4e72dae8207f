"""From an image to the network's input, and from its outputs to an answer: numpy and PIL, no torch.

Used on the edge device by `predict` and in training by `judge`, so that a score and a prediction
use the same steps. Label maps and boxes are in pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hgkd_edge.data.depth import decode_rgb
from hgkd_edge.data.images import open_image, read_image_file
from hgkd_edge.data.orientation import turn_of
from hgkd_edge.data.resize import Geometry, Placement
from hgkd_edge.errors import DataError, raise_if_out_of_memory, reason_of
from hgkd_edge.tasks.suppression import THRESHOLD, select_boxes

__all__ = [
    "GEOMETRY",
    "Detection",
    "FileAnswer",
    "Found",
    "Label",
    "as_threshold",
    "decide",
    "load_photo",
    "rank_classes",
    "read_class_map",
    "read_classify",
    "read_detect",
    "read_detections",
    "read_segment",
    "read_tags",
    "sigmoid",
    "tags_above",
]

GEOMETRY: dict[str, Geometry] = {
    "classify": "cover",
    "multilabel": "cover",
    "segment": "letterbox",
    "detect": "letterbox",
}


class Label(NamedTuple):
    """One class and its probability."""

    name: str
    probability: float


class Detection(NamedTuple):
    """One object: class, score in [0, 1], and x1, y1, x2, y2 in image pixels."""

    name: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Found:
    """What a model predicts for one image: one of these, by task.

    Attributes:
        labels: Classification: the most probable classes, best first.
        tags: Multi-label classification: the classes above the threshold, best first.
        shares: Segmentation: share of the image's area by class.
        boxes: Detection: objects, best first.
    """

    labels: list[Label] | None = None
    tags: list[Label] | None = None
    shares: dict[str, float] | None = None
    boxes: list[Detection] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The one that is set, as plain data."""
        if (labels := self.labels if self.tags is None else self.tags) is not None:
            return {"labels": [label._asdict() for label in labels]}
        if self.shares is not None:
            return {"shares": self.shares}
        return {} if self.boxes is None else {"boxes": [box._asdict() for box in self.boxes]}


@dataclass(frozen=True)
class FileAnswer:
    """What `predict` leaves of one image.

    Attributes:
        photo: The image file, or another name of the image.
        found: The prediction; empty where there is an error.
        picture: The image file that shows it; '' if none was written.
        map: Segmentation: the image file of the class of every pixel; '' if none was written.
        error: Why there is no prediction; '' where there is one.
    """

    photo: str
    found: Found = field(default_factory=Found)
    picture: str = ""
    map: str = ""
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The fields of `predict --json`."""
        if self.error:
            return {"photo": self.photo, "error": self.error}
        picture = {"picture": self.picture} if self.picture else {}
        label_map = {"map": self.map} if self.map else {}
        return {"photo": self.photo, **picture, **self.found.to_dict(), **label_map}


def load_photo(path: Path, *, bits: int = 0) -> Image.Image:
    """An image as RGB, in its displayed orientation.

    Args:
        path: The image file.
        bits: Bits used by 16-bit files; 0: all 16.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        content = read_image_file(path)
        with open_image(content) as image:
            return decode_rgb(image, content, turn_of(image), bits=bits)
    except Exception as error:  # a broken file may raise anything
        raise_if_out_of_memory(error, path)
        raise DataError(f"{path}: cannot be read as an image: {reason_of(error)}") from error


def decide(task: str, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The decisions from a network's outputs, as in a file with built-in post-processing.

    Args:
        task: `classify`, `multilabel`, `segment` or `detect`.
        outputs: Outputs of a batch: `logits` [B, K] or [B, K, H, W]; `label_logits` [B, K]; `boxes`
            [B, A, 4] and `scores` [B, A, K].

    Returns:
        `probabilities` or `label_probabilities` [B, K], `classes` [B, H, W], or `detections`
        [m, 7]: index of the image, x1, y1, x2, y2, score, class; the best of each image first.
    """
    if task == "classify":
        return {"probabilities": _softmax(outputs["logits"])}
    if task == "multilabel":
        return {"label_probabilities": sigmoid(outputs["label_logits"])}
    if task == "segment":
        return {"classes": outputs["logits"].argmax(axis=1).astype(np.int32)}
    rows = [np.empty((0, 7))]
    for image, one in enumerate(zip(outputs["boxes"], outputs["scores"], strict=True)):
        boxes, labels, scores = select_boxes(*one)
        rows.append(np.column_stack((np.full(len(boxes), image), boxes, scores, labels)))
    return {"detections": np.concatenate(rows).astype(np.float32)}


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights: np.ndarray = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probability of each label by itself; in this form it does not overflow."""
    return 0.5 + 0.5 * np.tanh(0.5 * logits)


def as_threshold(value: object) -> float:
    """A recorded threshold.

    Raises:
        ValueError: It is not between 0 and 1.
    """
    if not (isinstance(value, float) and 0 < value < 1):
        raise ValueError("its threshold is not between 0 and 1")
    return value


def read_tags(logits: np.ndarray, classes: Sequence[str], *, threshold: float) -> list[Label]:
    """The classes of logits [K] whose probability reaches the threshold, best first."""
    return tags_above(sigmoid(logits), classes, threshold=threshold)


def tags_above(
    probabilities: np.ndarray, classes: Sequence[str], *, threshold: float
) -> list[Label]:
    """The classes of probabilities [K] that reach the threshold, best first."""
    count = int((probabilities >= threshold).sum())
    return rank_classes(probabilities, classes, top=count)


def read_classify(logits: np.ndarray, classes: Sequence[str], *, top: int = 5) -> list[Label]:
    """The most probable classes of logits [K], best first."""
    return rank_classes(_softmax(logits), classes, top=top)


def rank_classes(probabilities: np.ndarray, classes: Sequence[str], *, top: int = 5) -> list[Label]:
    """The most probable of K classes, best first."""
    best = np.argsort(-probabilities, kind="stable")[:top]
    return [Label(classes[i], float(probabilities[i])) for i in best]


def read_segment(logits: np.ndarray, placement: Placement) -> np.ndarray:
    """Logits [K, H, W] of a canvas -> class of every image pixel, uint8 [H, W].

    Each class's plane is enlarged separately, so that edges are smooth at image resolution and
    memory does not grow with the number of classes.
    """
    rows, columns = placement.placed
    height, width = placement.original
    best = np.full((height, width), -np.inf, np.float32)
    labels = np.zeros((height, width), np.uint8)
    for label, plane in enumerate(logits[:, :rows, :columns].astype(np.float32)):
        image = Image.fromarray(np.ascontiguousarray(plane))
        enlarged = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        better = enlarged > best
        labels[better], best[better] = label, enlarged[better]
    return labels


def read_class_map(classes: np.ndarray, placement: Placement) -> np.ndarray:
    """Classes of canvas pixels, int [H, W] -> of image pixels, uint8 [H, W]."""
    rows, columns = placement.placed
    height, width = placement.original
    placed = Image.fromarray(np.ascontiguousarray(classes[:rows, :columns].astype(np.uint8)))
    return np.asarray(placed.resize((width, height), Image.Resampling.NEAREST))


def read_detect(
    boxes: np.ndarray,
    scores: np.ndarray,
    placement: Placement,
    classes: Sequence[str],
    *,
    threshold: float = THRESHOLD,
) -> list[Detection]:
    """Raw boxes [A, 4] and scores [A, K] of a canvas -> objects in the image, best first.

    Args:
        boxes: x1, y1, x2, y2 in pixels of the canvas.
        scores: In [0, 1].
        placement: Where the image lies on the canvas.
        classes: K class names.
        threshold: Lowest score that counts as an object.
    """
    found, labels, kept = select_boxes(boxes, scores, threshold=threshold)
    return [
        Detection(classes[label], float(score), tuple(box.tolist()))
        for box, label, score in zip(placement.to_original(found), labels, kept, strict=True)
    ]


def read_detections(
    detections: np.ndarray, placement: Placement, classes: Sequence[str], *, threshold: float
) -> list[Detection]:
    """Detections on a canvas after suppression -> objects in the image, best first.

    Args:
        detections: [m, 7] of image, x1, y1, x2, y2 in pixels of the canvas, score, class.
        placement: Where the image lies on the canvas.
        classes: K class names.
        threshold: Lowest score that counts as an object.
    """
    rows = detections[detections[:, 5] >= threshold]
    rows = rows[np.argsort(-rows[:, 5], kind="stable")]
    return [
        Detection(classes[int(row[6])], float(row[5]), tuple(box.tolist()))
        for row, box in zip(rows, placement.to_original(rows[:, 1:5]), strict=True)
    ]
