"""Agreement figures on synthetic outputs."""

import numpy as np
import pytest

from exporters import ExportError, VerificationFailed
from exporters.agreement import Comparison
from exporters.tolerances import TOLERANCES


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
    assert agreement.iou == pytest.approx((2 / 3 + 1 / 2) / 2)  # class 2 is absent: not counted
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


def logits_of(classes, *, spread=1.0, offset=0.0, images=64, seed=0):
    """Logits [B, K] of a network that tells its images apart by `spread` around `offset`."""
    rng = np.random.default_rng(seed)
    return (offset + spread * rng.normal(size=(images, classes))).astype(np.float32)


def noisy(logits, share, seed=1):
    noise = np.random.default_rng(seed).normal(size=logits.shape) * share
    return (logits + noise * (logits - logits.mean(0)).std()).astype(np.float32)


@pytest.mark.parametrize("classes", [2, 4, 1000])
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_ordinary_int8_noise_passes_whatever_the_number_and_size_of_logits(classes, spread):
    wanted = logits_of(classes, spread=spread)
    wanted[0] *= 1e-3  # an image with hardly any logits has no direction worth a cosine

    agreement = compare({"logits": wanted}, {"logits": noisy(wanted, 0.15)})["logits"]

    assert agreement.noise == pytest.approx(0.15, abs=0.03)
    assert agreement.passed


@pytest.mark.parametrize("classes", [2, 4, 1000])
@pytest.mark.parametrize("offset", [0.0, 10.0])
@pytest.mark.parametrize("damage", ["constant", "permuted", "doubled", "noise", "one image"])
def test_damage_is_refused_whatever_the_number_of_classes(classes, offset, damage):
    wanted = logits_of(classes, offset=offset)
    away = np.square(wanted - wanted.mean(0)).sum(1)
    clearest = wanted[away.argmax()].copy()
    wanted[0], wanted[away.argmax()] = clearest, wanted[0]
    got = {
        "constant": np.broadcast_to(wanted.mean(0), wanted.shape).copy(),  # cosine 0.99 at 10
        "permuted": wanted[:, ::-1].copy(),
        "doubled": wanted + (wanted - wanted.mean(0)),
        "noise": noisy(wanted, 0.6),
        "one image": np.concatenate([-wanted[:1] + 2 * offset, wanted[1:]]),
    }[damage]

    assert not compare({"logits": wanted}, {"logits": got})["logits"].passed


@pytest.mark.parametrize("classes", [2, 20])
def test_each_label_is_a_decision_by_itself(classes):
    wanted = logits_of(classes, spread=3.0)
    flipped = np.where(np.arange(classes) == 1, -wanted, wanted)  # of one class, the weaker or not

    rounded = compare({"label_logits": wanted}, {"label_logits": noisy(wanted, 0.1)})
    other = compare({"label_logits": wanted}, {"label_logits": flipped})["label_logits"]
    shares = [{"label_probabilities": 1 / (1 + np.exp(-x))} for x in (wanted, flipped)]

    assert rounded["label_logits"].passed
    assert other.top1 == 1 - 1 / classes
    assert compare(*shares)["label_probabilities"].top1 == other.top1
    assert not other.passed


def test_classes_that_are_equal_in_the_original_may_change_places():
    # Two dead classes of a weak network: their order is rounding, not an answer.
    wanted = np.tile(np.array([[2.0, 2.0 + 1e-6, -1.0]], np.float32), (64, 1))
    wanted[32:, 2] = 1.0
    got = wanted[:, [1, 0, 2]]

    agreement = compare({"logits": wanted}, {"logits": got}, "fp32")["logits"]

    assert agreement.top1 == agreement.kept == 1.0
    assert agreement.passed


def test_a_clear_decision_that_changes_counts_although_ties_do_not():
    wanted = logits_of(4)
    flipped = wanted.copy()
    first, second = np.argsort(-wanted, axis=1)[:, :2].T
    rows = np.arange(len(wanted))
    flipped[rows, first], flipped[rows, second] = wanted[rows, second], wanted[rows, first]

    agreement = compare({"logits": wanted}, {"logits": flipped})["logits"]

    assert agreement.top1 == 0.0
    assert 0.0 < agreement.kept < 0.7
    assert not agreement.passed


@pytest.mark.parametrize("classes", [4, 10, 1000])
def test_an_error_that_all_images_share_is_held_to_less_than_noise_of_the_same_size(classes):
    wanted = logits_of(classes)
    common = 0.25 * np.random.default_rng(2).choice([-1, 1], classes)

    got = {"shifted": wanted + common.astype(np.float32), "rounded": noisy(wanted, 0.25)}
    shifted, rounded = (compare({"maps": wanted}, {"maps": one})["maps"] for one in got.values())

    assert shifted.noise == pytest.approx(rounded.noise, abs=0.05)
    assert shifted.shift == pytest.approx(shifted.noise)
    assert rounded.shift < 0.1
    assert rounded.passed
    assert not shifted.passed


def test_a_class_map_shares_an_error_by_channel():
    wanted = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    got = wanted + np.array([0.3, 0.0, 0.0], np.float32)[:, None, None]

    (found,) = compare({"features": wanted}, {"features": got}).values()

    assert found.shift == pytest.approx(found.noise, rel=1e-3)
    assert not found.passed


def close_calls(classes, *, images=256):
    """Logits of a network that is never confident: the best two classes are within rounding."""
    wanted = logits_of(classes, images=images)
    order = np.argsort(-wanted, axis=1)
    rows = np.arange(images)
    wanted[rows, order[:, 1]] = wanted[rows, order[:, 0]] - 0.05
    return wanted


@pytest.mark.parametrize("classes", [3, 10, 100])
def test_close_calls_may_fall_either_way_but_not_all_the_same_way(classes):
    wanted = close_calls(classes)
    biased = wanted.copy()
    biased[:, 0] += 0.3  # one bias that is wrong by a third of the spread

    either = compare({"logits": wanted}, {"logits": noisy(wanted, 0.1)})["logits"]
    same_way = compare({"logits": wanted}, {"logits": biased})["logits"]

    assert either.top1 < 0.9
    assert either.kept == 1.0
    assert either.passed
    assert same_way.noise < 0.2
    assert same_way.kept == pytest.approx(same_way.top1, abs=0.02)
    assert same_way.passed == (same_way.top1 >= 0.95)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_image_of_hardly_any_output_has_no_direction_to_lose(precision):
    wanted = logits_of(16, images=8)
    wanted[3] *= 1e-6
    got = wanted.copy()
    got[3] += 1e-6 * np.random.default_rng(0).normal(size=16)

    assert compare({"logits": wanted}, {"logits": got}, precision)["logits"].passed


def test_boxes_without_an_area_overlap_themselves():
    boxes = np.zeros((2, 20, 4), np.float32)
    boxes[..., :2] = boxes[..., 2:] = np.random.default_rng(0).uniform(0, 640, (2, 20, 2))
    scores = np.random.default_rng(1).uniform(0, 1, (2, 20, 3)).astype(np.float32)

    found = compare(
        {"boxes": boxes, "scores": scores}, {"boxes": boxes + 1e-4, "scores": scores}, "fp32"
    )

    assert found["boxes"].iou > 0.99
    assert found["boxes"].passed


def test_scores_of_a_detector_that_sees_nothing_are_compared_with_a_score_that_counts():
    scores = np.full((4, 100, 2), 1e-4, np.float32)
    boxes = np.tile(np.array([10, 10, 50, 50], np.float32), (4, 100, 1))
    wanted = {"boxes": boxes, "scores": scores}

    rounding = compare(wanted, {**wanted, "scores": scores + np.float32(1e-7)}, "fp32")
    wrong = compare(wanted, {**wanted, "scores": scores + np.float32(1e-2)}, "fp32")

    assert rounding["scores"].passed
    assert not wrong["scores"].passed


def outputs_of_images(count=23, classes=10, seed=3):
    """Outputs of `count` images, f32[count, classes], and the same with an error."""
    rng = np.random.default_rng(seed)
    wanted = rng.normal(size=(count, classes)).astype(np.float32)
    return wanted, (wanted + rng.normal(scale=0.1, size=wanted.shape)).astype(np.float32)


@pytest.mark.parametrize("output", ["logits", "embedding"])
def test_figures_do_not_depend_on_how_images_are_batched(output):
    wanted, got = outputs_of_images()
    batched = Comparison()
    for part in np.split(np.arange(len(wanted)), [3, 4, 15]):
        batched.add({output: wanted[part]}, {output: got[part]})

    (agreement,) = batched.agreements(TOLERANCES["int8"])

    whole = compare({output: wanted}, {output: got})[output]
    for field in ("max_abs_error", "relative_error", "rms_error", "cosine", "top1", "kept"):
        assert getattr(agreement, field) == pytest.approx(getattr(whole, field)), field
    for field in ("noise", "worst", "shift"):
        assert getattr(agreement, field) == pytest.approx(getattr(whole, field)), field
    assert agreement.worst_image == whole.worst_image
    assert agreement.passed == whole.passed


def test_figures_are_those_of_their_formulas():
    wanted, got = outputs_of_images()
    got[17, 4] = wanted[17, 4] - 2  # the largest error

    agreement = compare({"embedding": wanted}, {"embedding": got})["embedding"]

    a, b = wanted.astype(float), got.astype(float)
    error = b - a
    spread = np.sqrt(np.square(a - a.mean(axis=0)).sum() / (len(a) - 1))
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert agreement.worst_image == 17
    assert agreement.max_abs_error == pytest.approx(2)
    assert agreement.relative_error == pytest.approx(2 / np.abs(a).max())
    assert agreement.rms_error == pytest.approx(np.linalg.norm(error) / np.linalg.norm(a))
    assert agreement.cosine == pytest.approx(cosines.min())
    assert agreement.noise == pytest.approx(np.sqrt(np.square(error).sum(1).mean()) / spread)
    assert agreement.worst == pytest.approx(np.linalg.norm(error, axis=1).max() / spread)
    assert agreement.shift == pytest.approx(np.linalg.norm(error.mean(axis=0)) / spread)


def test_one_value_per_image_is_one_channel():
    wanted, got = outputs_of_images(classes=1)

    flat = compare({"score": wanted[:, 0]}, {"score": got[:, 0]})["score"]

    assert flat == compare({"score": wanted}, {"score": got})["score"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_an_infinite_error_of_its_image(value):
    wanted, _ = outputs_of_images()
    got = wanted.copy()
    got[5, 2] = value

    agreement = compare({"embedding": wanted}, {"embedding": got})["embedding"]

    rest = wanted[5].astype(float).copy()
    rest[2] = 0  # the direction of what is left
    direction = np.linalg.norm(rest) / np.linalg.norm(wanted[5])
    assert agreement.max_abs_error == np.inf
    assert agreement.worst_image == 5
    assert agreement.cosine == pytest.approx(direction, rel=1e-5)
    assert not agreement.passed


def test_outputs_of_zeros_agree_with_zeros_only():
    zeros, ones = np.zeros((5, 4), np.float32), np.ones((5, 4), np.float32)

    assert compare({"embedding": zeros}, {"embedding": zeros}, "fp32")["embedding"].cosine == 1
    assert compare({"embedding": ones}, {"embedding": 0 * ones}, "fp32")["embedding"].cosine == 0


def test_outputs_that_differ_are_named():
    wanted, got = outputs_of_images()

    with pytest.raises(VerificationFailed, match=r"outputs are \['b'\], the original's \['a'\]"):
        compare({"a": wanted}, {"b": got})
    with pytest.raises(VerificationFailed, match=r"'a' has shape \(23, 9\).*\(23, 10\)"):
        compare({"a": wanted}, {"a": got[:, :9]})
    with pytest.raises(ExportError, match="original gives non-finite values at output 'a'") as why:
        compare({"a": wanted * np.inf}, {"a": got})
    assert why.value.hint
