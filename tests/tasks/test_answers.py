from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.ops import batched_nms, box_iou

from hgkd_edge.bundles.device import predict as script
from hgkd_edge.data.resize import PAD, letterbox, place
from hgkd_edge.errors import DataError
from hgkd_edge.tasks import answers, suppression
from hgkd_edge.tasks.pictures import draw_boxes, draw_labels, draw_segments, side_by_side

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDES = st.integers(1, 3000)


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@given(SIDES, SIDES, st.integers(8, 640), st.integers(8, 640))
def test_a_letterboxed_image_lies_whole_on_its_canvas_and_boxes_find_the_way_back(
    height: int, width: int, rows: int, columns: int
) -> None:
    placement = place((height, width), (rows, columns))
    box = np.array([[0.25 * width, 0.1 * height, 0.75 * width, height]], np.float32)

    on_canvas = placement.to_canvas(box)

    assert placement.placed[0] == rows or placement.placed[1] == columns
    assert (on_canvas <= (columns, rows, columns, rows)).all()
    np.testing.assert_allclose(placement.to_original(on_canvas), box, rtol=1e-5)


def test_letterboxing_keeps_the_shape_of_things_and_fills_the_rest() -> None:
    photo = Image.new("RGB", (200, 100), "white")

    canvas = np.asarray(letterbox(photo, (64, 64)))

    assert (canvas[:32] == 255).all()
    assert (canvas[32:] == PAD).all()


def test_images_are_turned_upright_and_broken_ones_named(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    noise(20, 40).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 not an image")

    assert answers.load_photo(tmp_path / "turned.jpg").size == (20, 40)
    with pytest.raises(DataError, match="broken.jpg: cannot be read"):
        answers.load_photo(tmp_path / "broken.jpg")


def test_labels_come_best_first_with_probabilities() -> None:
    best = answers.read_classify(np.array([0.0, 2.0, 1.0]), ["a", "b", "c"], top=2)

    assert [label.name for label in best] == ["b", "c"]
    assert best[0].probability == pytest.approx(np.exp(2) / (1 + np.exp(1) + np.exp(2)))


def test_a_label_map_returns_to_the_images_own_pixels_without_the_margin() -> None:
    truth = np.zeros((100, 200), np.uint8)
    truth[20:80, 50:150] = 2
    nearest = Image.Resampling.NEAREST
    canvas = np.asarray(letterbox(Image.fromarray(truth), (64, 64), fill=1, resample=nearest))
    logits = (np.arange(3)[:, None, None] == canvas).astype(np.float32) * 5

    labels = answers.read_segment(logits, place((100, 200), (64, 64)))

    assert labels.shape == truth.shape
    assert 1 not in labels
    assert (labels == truth).mean() > 0.98


@pytest.mark.parametrize("seed", range(5))
def test_suppression_keeps_the_same_boxes_as_torchvision(seed: int) -> None:
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 80, (300, 2))
    boxes = np.concatenate([corner, corner + random.uniform(5, 40, (300, 2))], 1).astype(np.float32)
    scores = random.uniform(0, 1, (300, 3)).astype(np.float32)

    found, labels, kept = suppression.select_boxes(boxes, scores, threshold=0.7, limit=1000)

    rows, columns = np.nonzero(scores > 0.7)
    flat = torch.from_numpy(scores[rows, columns])
    expected = batched_nms(
        torch.from_numpy(boxes[rows]), flat, torch.from_numpy(columns), iou_threshold=0.6
    )
    assert 0 < len(kept) < len(rows)
    np.testing.assert_array_equal(kept, flat[expected].numpy())
    np.testing.assert_array_equal(found, boxes[rows][expected.numpy()])
    np.testing.assert_array_equal(labels, columns[expected.numpy()])
    torch.testing.assert_close(
        torch.from_numpy(suppression.box_iou(found, boxes)),
        box_iou(torch.from_numpy(found), torch.from_numpy(boxes)),
    )


def test_objects_are_reported_in_pixels_of_the_image() -> None:
    boxes = np.array([[8, 8, 16, 32], [0, 0, 4, 4]], np.float32)
    scores = np.array([[0.1, 0.9], [0.2, 0.3]], np.float32)

    found = answers.read_detect(boxes, scores, place((640, 480), (64, 64)), ["cat", "dog"])

    assert [(item.name, item.box) for item in found] == [("dog", (80.0, 80.0, 160.0, 320.0))]
    assert answers.read_detect(boxes, scores * 0, place((64, 64), (64, 64)), ["cat", "dog"]) == []


def test_a_score_equal_to_the_threshold_is_an_object_everywhere() -> None:
    boxes = np.array([[8, 8, 16, 32], [0, 0, 4, 4]], np.float32)
    scores = np.array([[0.4], [0.39]], np.float32)
    rows = np.array([[0, 8, 8, 16, 32, 0.4, 0], [0, 0, 0, 4, 4, 0.39, 0]], np.float32)
    placement, rule = place((64, 64), (64, 64)), asdict(suppression.SUPPRESSION)
    known = {"classes": ["cat"], "size": (64, 64), "suppression": rule}

    found = [
        answers.read_detect(boxes, scores, placement, ["cat"]),
        answers.read_detections(rows, placement, ["cat"], threshold=0.4),
    ]
    for outputs in ({"boxes": boxes[None], "scores": scores[None]}, {"detections": rows}):
        answered = script.ANSWERS["detect"](known, outputs, noise(64, 64), 0.4)
        found.append(answered["boxes"])

    assert [len(objects) for objects in found] == [1, 1, 1, 1]


def test_pictures_show_what_was_found_and_keep_the_image() -> None:
    photo = noise(90, 120)
    before = photo.tobytes()
    segments = np.zeros((90, 120), np.uint8)
    segments[:45] = 1

    boxed = draw_boxes(photo, [answers.Detection("b", 0.9, (30, 30, 60, 60))], ["a", "b"])
    tinted = draw_segments(photo, segments)
    named = draw_labels(photo, [answers.Label("a", 0.7), answers.Label("b", 0.2)])

    assert photo.tobytes() == before
    assert boxed.getpixel((45, 60)) != photo.getpixel((45, 60))
    assert boxed.getpixel((45, 45)) == photo.getpixel((45, 45))
    changed = (np.asarray(tinted) != np.asarray(photo)).any(axis=2)
    assert changed[:45].mean() > 0.9
    assert not changed[45:].any()
    assert named.tobytes() != before
    assert side_by_side([boxed, tinted]).size == (244, 90)


@pytest.mark.parametrize("score", [0.5, 1.0])
def test_found_boxes_show_their_score_and_true_ones_none(score: float) -> None:
    photo, box = Image.new("RGB", (200, 120)), (30.0, 60.0, 90.0, 110.0)

    def drawn(score: float, *, scored: bool) -> bytes:
        found = [answers.Detection("a", score, box)]
        return draw_boxes(photo, found, ["a"], scored=scored).tobytes()

    assert drawn(score, scored=True) != drawn(score, scored=False)
    assert drawn(score, scored=False) == drawn(0.25, scored=False)


def test_what_the_edge_needs_loads_no_torch() -> None:
    code = "import sys, hgkd_edge.tasks.answers, hgkd_edge.tasks.pictures as p; "
    code += "from PIL import Image; p.side_by_side([Image.new('RGB', (2, 2))]); "
    code += "print('torch' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
