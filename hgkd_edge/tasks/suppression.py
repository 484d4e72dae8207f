"""Non-maximum suppression (NMS) of detected boxes, and its parameters."""

from __future__ import annotations

import numpy as np

from exporters.bake import Suppression

__all__ = ["SUPPRESSION", "THRESHOLD", "box_iou", "select_boxes"]

SUPPRESSION = Suppression(threshold=0.4, overlap=0.6, candidates=1000, limit=100)
"""The rule of `predict`, and of suppression inside an exported file.

A score equal to the threshold counts in `predict`. ONNX's NonMaxSuppression, in a file, drops it.
"""

THRESHOLD = SUPPRESSION.threshold
"""The lowest score that counts as an object."""


def select_boxes(
    boxes: np.ndarray,
    scores: np.ndarray,
    *,
    threshold: float = THRESHOLD,
    limit: int = SUPPRESSION.limit,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Non-maximum suppression, class by class, with the parameters of `SUPPRESSION`.

    Args:
        boxes: float [A, 4], x1, y1, x2, y2.
        scores: float [A, K].
        threshold: Lowest score to consider.
        limit: Largest number of boxes returned.

    Returns:
        Boxes [m, 4], their classes int [m] and scores [m], best first.
    """
    rows, labels = np.nonzero(scores >= threshold)
    order = np.argsort(-scores[rows, labels], kind="stable")[: SUPPRESSION.candidates]
    rows, labels = rows[order], labels[order]
    candidates, alive = boxes[rows], np.ones(len(rows), bool)
    kept: list[int] = []
    for i in range(len(rows)):
        if not alive[i]:
            continue
        kept.append(i)
        if len(kept) == limit:
            break
        rivals = labels == labels[i]
        alive[rivals] &= (
            box_iou(candidates[i : i + 1], candidates[rivals])[0] <= SUPPRESSION.overlap
        )
    return candidates[kept], labels[kept], scores[rows, labels][kept]


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [m, 4] and [n, 4], float [m, n]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)  # [m, n]
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(axis=1) for x in (a, b))
    return common / np.maximum(area_a[:, None] + area_b[None] - common, 1e-9)
