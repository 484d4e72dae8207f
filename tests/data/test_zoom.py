from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hgkd_edge.data.zoom import Zoom, jitter, random_zoom

SIZE = (48, 80)


def draw(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 5, generator=torch.Generator().manual_seed(seed))


def rectangles(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Canvases [B, 3, H, W] and label maps [B, H, W] in which each box [B, 1, 5] is painted."""
    labels = torch.zeros(len(boxes), *SIZE, dtype=torch.uint8)
    for canvas, (_, x1, y1, x2, y2) in zip(labels, boxes[:, 0].int().tolist(), strict=True):
        canvas[y1:y2, x1:x2] = 1
    return (labels * 255)[:, None].expand(-1, 3, -1, -1), labels


def extent(mask: Tensor) -> list[float]:
    """x1, y1, x2, y2 of what is set in a mask [H, W]."""
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    low, high = (columns.min(), rows.min()), (columns.max() + 1, rows.max() + 1)
    return [float(value) for value in (*low, *high)]


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_image_label_map_and_box_move_together(seed: int) -> None:
    zoom = random_zoom(draw(8, seed), zoom=(0.6, 1.8), flip=True, vertical_flip=True)
    boxes = torch.tensor([[2.0, 30.0, 14.0, 54.0, 38.0]]).expand(8, 1, 5)
    images, labels = rectangles(boxes)

    seen, maps = zoom.images(images)[:, 0], zoom.labels(labels)
    moved = zoom.boxes(boxes, SIZE)

    area = 24 * 24 / zoom.factor.prod(dim=1).abs()  # area of the box in an unbounded view
    for image, labeled, box, whole in zip(seen, maps, moved[:, 0], area, strict=True):
        share = (labeled == 1).sum() / whole
        if share < 0.35:  # near a quarter the box may count as absent
            assert share > 0.15 or box[0] == -1
            continue
        assert box[0] == 2
        for mask in (image > 0.75, labeled == 1):
            corners = torch.tensor(extent(mask))
            assert (corners - box[1:]).abs().max() <= 1.5
        assert 0 <= box[1] < box[3] <= SIZE[1]
        assert 0 <= box[2] < box[4] <= SIZE[0]


def test_the_plain_view_changes_nothing() -> None:
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    labels = torch.randint(0, 3, (2, *SIZE), dtype=torch.uint8)
    boxes = torch.tensor([[[1.0, 3, 5, 20, 30], [-1, 0, 0, 0, 0]]]).expand(2, 2, 5)
    plain = Zoom(torch.ones(2, 2), torch.zeros(2, 2))

    torch.testing.assert_close(plain.images(images), images / 255, atol=1e-5, rtol=0)
    assert torch.equal(plain.labels(labels), labels.long())
    torch.testing.assert_close(plain.boxes(boxes, SIZE), boxes)


def test_outside_the_canvas_is_ignored() -> None:
    half = Zoom(torch.full((1, 2), 2.0), torch.zeros(1, 2))

    labels = half.labels(torch.ones(1, *SIZE, dtype=torch.uint8))[0]

    assert (labels[12:36, 20:60] == 1).all()
    assert (labels[:12] == 255).all()
    assert (labels[:, 60:] == 255).all()


def test_boxes_that_leave_the_view_are_taken_for_absent() -> None:
    left_half = Zoom(torch.tensor([[0.5, 0.5]]), torch.tensor([[-0.5, -0.5]]))
    boxes = torch.tensor([[[1.0, 50, 4, 60, 9], [1, 35, 4, 75, 9], [1, 30, 4, 50, 9]]])

    classes = left_half.boxes(boxes, SIZE)[0, :, 0]

    assert classes.tolist() == [-1, -1, 1]  # outside, an eighth inside, half inside


def test_images_with_an_up_are_never_turned_upside_down() -> None:
    upright = random_zoom(draw(200), zoom=(0.7, 1.5), flip=True, vertical_flip=False)
    turned = random_zoom(draw(200), zoom=(0.7, 1.5), flip=True, vertical_flip=True)

    assert (upright.factor[:, 1] > 0).all()
    assert 60 < (upright.factor[:, 0] < 0).sum() < 140
    assert 60 < (turned.factor[:, 1] < 0).sum() < 140


def test_without_flips_no_view_is_mirrored() -> None:
    zoom = random_zoom(draw(200), zoom=(0.7, 1.5), flip=False, vertical_flip=False)

    assert (zoom.factor > 0).all()


def test_enlarged_views_stay_within_the_canvas() -> None:
    zoom = random_zoom(draw(300), zoom=(1.0, 2.0), flip=True, vertical_flip=False)

    labels = zoom.labels(torch.ones(300, *SIZE, dtype=torch.uint8))

    assert (labels == 1).all()


def test_views_are_exact_under_autocast() -> None:
    zoom = random_zoom(draw(4), zoom=(0.6, 1.8), flip=True, vertical_flip=True)
    images = torch.randint(0, 256, (4, 3, *SIZE), dtype=torch.uint8)
    wanted = zoom.images(images)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = zoom.images(images)

    torch.testing.assert_close(seen, wanted)


def test_jitter_changes_light_within_its_strength_and_keeps_the_range() -> None:
    images = torch.rand(50, 3, 8, 8)
    changed = jitter(images, draw(50)[:, :2], strength=0.2)

    assert changed.min() >= 0
    assert changed.max() <= 1
    ratio = changed.mean(dim=(1, 2, 3)) / images.mean(dim=(1, 2, 3))
    assert 0.75 < ratio.min() < 0.9
    assert 1.1 < ratio.max() < 1.25
    torch.testing.assert_close(jitter(images, draw(50)[:, :2], strength=0.0), images)
