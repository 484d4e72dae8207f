"""Confidence intervals of COCO's average precision, by a bootstrap over images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from exporters.quiet import quiet
from hgkd_edge.score_records import TaskIntervals

__all__ = ["ScoredImage", "precision_intervals", "resamples"]

RESAMPLES = 200
FEWEST = 50  # minimum number of resamples, for any number of images and classes
PAIRS = 4_000_000  # limit on (image, class) pairs processed by all resamples together


_Object = tuple[int, float, np.ndarray, dict[str, float]]  # image, class, corners, more


class ScoredImage(NamedTuple):
    """One image: its true boxes and the detected boxes.

    Attributes:
        truth: float [m, 5] of class, x1, y1, x2, y2 in pixels.
        boxes: float [n, 4] of x1, y1, x2, y2.
        labels: int [n].
        scores: float [n].
    """

    truth: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


def precision_intervals(images: Sequence[ScoredImage], classes: int) -> TaskIntervals:
    """95 % intervals of `map` (IoU .5 to .95) and `map50`, by percentile bootstrap (Efron 1979).

    Boxes are matched once, by pycocotools; each resample counts its images' matches again.

    Args:
        images: All scored images.
        classes: Number of classes.

    Returns:
        None of them if there are fewer than two images or no true boxes.
    """
    if len(images) < 2 or not any(len(image.truth) for image in images):
        return TaskIntervals()
    evaluation = _matched(images, classes)
    whole = evaluation.evalImgs  # by class, then by image
    per_class = [whole[i : i + len(images)] for i in range(0, len(whole), len(images))]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(resamples(len(whole))):
        chosen = rng.integers(0, len(images), len(images))
        evaluation.evalImgs = [matches[i] for matches in per_class for i in chosen]
        drawn.append(_precision(evaluation))
    low, high = np.nanpercentile(np.array(drawn), [2.5, 97.5], axis=0).tolist()  # [2] each
    return TaskIntervals(map=(low[0], high[0]), map50=(low[1], high[1]))


def resamples(pairs: int) -> int:
    """Number of resamples of `pairs` (image, class) pairs."""
    return min(RESAMPLES, max(FEWEST, PAIRS // pairs))


def _matched(images: Sequence[ScoredImage], classes: int) -> Any:
    """A `COCOeval` whose detected boxes are matched to true boxes, image by image."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = COCO(), COCO()
    shown = [{"id": i} for i in range(len(images))]
    categories = [{"id": k} for k in range(classes)]
    true: list[_Object] = [
        (i, row[0], row[1:], {}) for i, image in enumerate(images) for row in image.truth
    ]
    answers: list[_Object] = [
        (i, label, box, {"score": float(score)})
        for i, image in enumerate(images)
        for box, label, score in zip(image.boxes, image.labels, image.scores, strict=True)
    ]
    with quiet("pycocotools"):
        for side, objects in ((truth, true), (found, answers)):
            annotations = [_annotation(n, *each) for n, each in enumerate(objects, start=1)]
            side.dataset = {"images": shown, "categories": categories, "annotations": annotations}
            side.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
    return evaluation


def _annotation(
    number: int, image: int, label: float, corners: np.ndarray, more: dict[str, float]
) -> dict[str, Any]:
    x1, y1, x2, y2 = map(float, corners)
    return {
        "id": number, "image_id": image, "category_id": int(label), "iscrowd": 0,
        "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), **more,
    }  # fmt: skip


def _precision(evaluation: Any) -> tuple[float, float]:
    """mAP over IoU .5 to .95, and at .5; NaN if the images hold no true box."""
    with quiet("pycocotools"):
        evaluation.accumulate()
    precision = evaluation.eval["precision"]  # [IoU, recall, class, 1, 1], -1 for absent classes
    present = precision[0, 0, :, 0, 0] >= 0
    if not present.any():
        return float("nan"), float("nan")
    precision = precision[:, :, present]
    return float(precision.mean()), float(precision[0].mean())
