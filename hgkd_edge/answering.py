"""Predictions of an open model for one image: as JSON, as a picture, with stage times.

Used by `predict` (image files), `video/` (frames) and `pipeline.py` (timing). No torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from exporters.runtimes import Outputs
from hgkd_edge.errors import DataError
from hgkd_edge.stages import Stages
from hgkd_edge.task_model import TaskModel
from hgkd_edge.tasks import answers, pictures
from hgkd_edge.tasks.answers import Found
from hgkd_edge.tasks.suppression import THRESHOLD

__all__ = ["Answer", "answer_image", "require_threshold"]


class Answer(NamedTuple):
    """A model's prediction for one image.

    Attributes:
        found: What it predicts.
        draw: Makes a copy of the image that shows the answer.
        label_map: Class of every pixel, uint8 [H, W], of a segmentation.
    """

    found: Found
    draw: Callable[[], Image.Image]
    label_map: np.ndarray | None = None


def answer_image(
    opened: TaskModel, photo: Image.Image, threshold: float | None, stages: Stages
) -> Answer:
    """Predict for one upright RGB image.

    Args:
        opened: The model.
        photo: The image.
        threshold: Lowest score of a box or a label; None is the model's own.
        stages: Collects the times of `preprocess`, `infer` and `postprocess`.

    Raises:
        DataError: The image size is not the one that the model takes.
    """
    if threshold is None:
        threshold = opened.threshold
    with stages.measure("preprocess"):
        inputs = opened.prepare(photo)
    with stages.measure("infer"):
        outputs = opened.session.run(inputs)
    with stages.measure("postprocess"):
        return _READERS[opened.task](opened, outputs, photo, threshold)


def require_threshold(opened: TaskModel, threshold: float | None) -> None:
    """Reject a threshold that is no score, or below the one built into the file's suppression."""
    if threshold is not None and not 0 <= threshold <= 1:
        raise DataError(f"--threshold must be from 0 to 1, not {threshold:g}", hint="such as 0.4")
    inside = opened.task == "detect" and "postprocessing" in opened.baked
    if inside and threshold is not None and threshold < THRESHOLD:
        raise DataError(
            f"--threshold {threshold:g}: the file keeps boxes of at least {THRESHOLD:g}",
            hint="name the file without baked postprocessing of the same export",
        )


def _classify(opened: TaskModel, outputs: Outputs, photo: Image.Image, threshold: float) -> Answer:
    if "postprocessing" in opened.baked:
        labels = answers.rank_classes(outputs["probabilities"][0], opened.classes)
    else:
        labels = answers.read_classify(outputs["logits"][0], opened.classes)
    return Answer(Found(labels=labels), partial(pictures.draw_labels, photo, labels[:1]))


def _tag(opened: TaskModel, outputs: Outputs, photo: Image.Image, threshold: float) -> Answer:
    if "postprocessing" in opened.baked:
        shares = outputs["label_probabilities"][0]
        tags = answers.tags_above(shares, opened.classes, threshold=threshold)
    else:
        tags = answers.read_tags(outputs["label_logits"][0], opened.classes, threshold=threshold)
    return Answer(Found(tags=tags), partial(pictures.draw_labels, photo, tags))


def _segment(opened: TaskModel, outputs: Outputs, photo: Image.Image, threshold: float) -> Answer:
    placement = opened.input.placement(photo)
    if "postprocessing" in opened.baked:
        found = answers.read_class_map(outputs["classes"][0], placement)  # uint8 [H, W]
    else:
        found = answers.read_segment(outputs["logits"][0], placement)
    counts = np.bincount(found.ravel(), minlength=len(opened.classes))
    shares = dict(zip(opened.classes, (counts / found.size).tolist(), strict=True))
    return Answer(Found(shares=shares), partial(pictures.draw_segments, photo, found), found)


def _detect(opened: TaskModel, outputs: Outputs, photo: Image.Image, threshold: float) -> Answer:
    placement, classes = opened.input.placement(photo), opened.classes
    if "postprocessing" in opened.baked:
        rows = outputs["detections"]  # of all images of the batch (one)
        found = answers.read_detections(rows, placement, classes, threshold=threshold)
    else:
        boxes, scores = outputs["boxes"][0], outputs["scores"][0]
        found = answers.read_detect(boxes, scores, placement, classes, threshold=threshold)
    return Answer(Found(boxes=found), partial(pictures.draw_boxes, photo, found, classes))


_READERS: dict[str, Callable[[TaskModel, Outputs, Image.Image, float], Answer]] = {
    "classify": _classify,
    "multilabel": _tag,
    "segment": _segment,
    "detect": _detect,
}
