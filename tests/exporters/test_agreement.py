"""Figures of agreement on outputs made up for the purpose."""

import numpy as np
import pytest

from exporters.agreement import TOLERANCES, Comparison


def compare(wanted, got, precision="int8"):
    comparison = Comparison()
    comparison.add(wanted, got)
    return {a.name: a for a in comparison.agreements(TOLERANCES[precision])}


def one_hot(labels, classes=3):
    """Label maps [B, H, W] -> logits f32[B, K, H, W]."""
    return np.moveaxis(np.eye(classes, dtype=np.float32)[np.array(labels)], -1, 1)


def test_label_maps_are_compared_pixel_by_pixel_and_class_by_class():
    wanted, got = [[[0, 0], [0, 1]]], [[[0, 0], [1, 1]]]

    agreement = compare({"logits": one_hot(wanted)}, {"logits": one_hot(got)})["logits"]

    assert agreement.top1 == 0.75
    assert agreement.iou == pytest.approx((2 / 3 + 1 / 2) / 2)  # class 2 is nowhere: not counted
    assert not agreement.passed


def test_overlap_is_counted_over_all_batches():
    comparison = Comparison()
    for wanted, got in (([[[0, 1]]], [[[0, 1]]]), ([[[0, 1]]], [[[0, 0]]])):
        comparison.add({"logits": one_hot(wanted)}, {"logits": one_hot(got)})

    (agreement,) = comparison.agreements(TOLERANCES["int8"])
    assert agreement.iou == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_class_maps_are_judged_by_overlap_alone():
    labels = np.random.default_rng(0).integers(0, 3, (2, 32, 32))
    almost = labels.copy()
    almost[0, 0, 0] = (almost[0, 0, 0] + 1) % 3

    agreement = compare({"classes": labels}, {"classes": almost}, "fp32")["classes"]

    assert agreement.max_abs_error is None
    assert 0.99 < agreement.iou < 1
    assert agreement.passed


def boxes_and_scores(shift=0.0, swap=False):
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 50, (2, 40, 2)).astype(np.float32)
    boxes = np.concatenate((corner, corner + 10), axis=-1)
    scores = rng.uniform(0, 1, (2, 40, 3)).astype(np.float32)
    boxes[..., [0, 2]] += shift
    return {"boxes": boxes, "scores": scores[..., ::-1].copy() if swap else scores}


def test_confident_boxes_are_compared_by_overlap():
    same = compare(boxes_and_scores(), boxes_and_scores())
    shifted = compare(boxes_and_scores(), boxes_and_scores(shift=5.0))

    assert same["boxes"].iou == pytest.approx(1.0)
    assert same["scores"].top1 == 1.0
    assert shifted["boxes"].iou == pytest.approx(1 / 3, abs=1e-3)
    assert not shifted["boxes"].passed


def test_confident_anchors_of_another_class_fail():
    found = compare(boxes_and_scores(), boxes_and_scores(swap=True))

    assert found["scores"].top1 < 0.5
    assert not found["scores"].passed


def test_detections_are_matched_whatever_their_order_and_number():
    wanted = np.array([[0, 0, 0, 10, 10, 0.9, 1], [1, 5, 5, 20, 20, 0.8, 0]], np.float32)

    same = compare({"detections": wanted}, {"detections": wanted[::-1]})["detections"]
    fewer = compare({"detections": wanted}, {"detections": wanted[:1]})["detections"]
    none = compare({"detections": wanted[:0]}, {"detections": wanted[:0]})["detections"]

    assert (same.top1, same.passed) == (1.0, True)
    assert (fewer.top1, fewer.passed) == (pytest.approx(2 / 3), False)
    assert none.passed
