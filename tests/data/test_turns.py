"""Annotated images with an EXIF orientation: which orientation their boxes and masks refer to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hgkd_edge.data.orientation import Turn
from hgkd_edge.data.resize import cover, letterbox
from hgkd_edge.data.sources import ImageSource, open_splits
from hgkd_edge.recipe_sections import DataConfig
from hgkd_edge.survey import draw_survey, survey
from hgkd_edge.tasks.answers import load_photo
from tests.data.annotated import boxes, masks

ORIENTATIONS = range(1, 9)
UPRIGHT = np.zeros((60, 40, 3), np.uint8)  # what a person sees: a bright block at the top left
UPRIGHT[5:15, 5:20] = 250
# How a camera that writes an orientation stores an upright image.
STORE: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a, -1),
}


def save(file: Path, orientation: int, pixels: np.ndarray = UPRIGHT) -> np.ndarray:
    """An image that viewers show as `pixels`; returns the stored image."""
    stored = np.ascontiguousarray(STORE[orientation](pixels))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(stored).save(file, exif=exif)
    return stored


def stored_box(orientation: int) -> list[int]:
    """x, y, width, height of the block in the stored image."""
    rows, columns = np.nonzero(STORE[orientation](UPRIGHT)[..., 0])
    left, top = int(columns.min()), int(rows.min())
    return [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]


UPRIGHT_BOX = stored_box(1)


def coco(root: Path, *photos: dict[str, Any], suffix: str = ".png") -> Path:
    """Each image: `orientation`, `box` and perhaps `size` (height, width)."""
    images, annotations = [], []
    for i, photo in enumerate(photos):
        save(root / f"{i}{suffix}", photo["orientation"])
        height, width = photo.get("size") or (None, None)
        images.append({"id": i, "file_name": f"{i}{suffix}", "height": height, "width": width})
        annotations.append({"image_id": i, "category_id": 1, "bbox": photo["box"]})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "block"}],
    }
    (root / "train.json").write_text(json.dumps(content))
    return root


def block_is_in_its_box(source: ImageSource, i: int = 0) -> bool:
    """Whether the pixels in the box are bright, and all others are not."""
    image = source.images[i, 0].numpy().astype(int)  # type: ignore[index]
    x1, y1, x2, y2 = np.round(source.labels[i, 0, 1:].numpy()).astype(int)
    inside = np.zeros(image.shape, bool)
    inside[y1:y2, x1:x2] = True
    bright = image > 180
    return bool((bright & inside).sum() > 0.85 * max(bright.sum(), inside.sum()))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff", ".webp"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_stated_size_decides_where_it_can_and_else_what_viewers_show(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    stored, upright = stored_box(orientation), UPRIGHT_BOX
    swapped = orientation >= 5
    cases: list[dict[str, Any]] = [{"box": upright, "size": (60, 40)}, {"box": upright}]
    if swapped:
        cases.append({"box": stored, "size": (40, 60)})
    for i, case in enumerate(cases):
        root = tmp_path / str(i)
        root.mkdir()

        photo = {"orientation": orientation, **case}
        source = boxes(coco(root, photo, suffix=suffix), (96, 96), holdout=0)["train"]

        assert len(source) == 1, source.skipped
        assert block_is_in_its_box(source), case
        assert any("EXIF" in line for line in source.remarks) == (orientation > 1)


VOC = """<annotation><size><width>{width}</width><height>{height}</height></size><object>
<name>block</name><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax>
<ymax>{box[3]}</ymax></bndbox></object></annotation>"""


@pytest.mark.parametrize(
    ("height", "width", "upright"), [(60, 40, True), (40, 60, False), (0, 0, True)]
)
def test_so_it_is_with_pascal_voc(tmp_path: Path, height: int, width: int, upright: bool) -> None:
    save(tmp_path / "JPEGImages" / "a.jpg", 6)
    x, y, wide, high = UPRIGHT_BOX if upright else stored_box(6)
    text = VOC.format(width=width, height=height, box=(x, y, x + wide, y + high))
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "a.xml").write_text(text)

    source = boxes(tmp_path, (96, 96), holdout=0)["train"]

    assert block_is_in_its_box(source), source.skipped


@pytest.mark.parametrize("orientation", ORIENTATIONS[1:])
@pytest.mark.parametrize("convention", ["upright", "stored"])
def test_images_without_a_telling_size_follow_the_others_of_their_data_set(
    tmp_path: Path, orientation: int, convention: str
) -> None:
    printed = {"upright": (60, 40), "stored": (40, 60)}[convention]
    box_of = {"upright": lambda _: UPRIGHT_BOX, "stored": stored_box}[convention]
    photos = [{"orientation": 6, "box": box_of(6), "size": printed}] * 2
    photos.insert(0, {"orientation": orientation, "box": box_of(orientation)})

    source = boxes(coco(tmp_path, *photos), (96, 96), holdout=0)["train"]

    assert [block_is_in_its_box(source, i) for i in range(3)] == [True] * 3
    (remark,) = source.remarks
    assert "3 images turned by EXIF orientation" in remark
    assert "like the others" in remark


def test_a_size_that_fits_neither_way_names_exif(tmp_path: Path) -> None:
    good = {"orientation": 1, "box": UPRIGHT_BOX}
    bad = {"orientation": 6, "box": UPRIGHT_BOX, "size": (70, 70)}

    source = boxes(coco(tmp_path, good, bad), holdout=0)["train"]

    ((_, reason),) = source.skipped
    assert "has 40 x 60 pixels (60 x 40 before EXIF turns it)" in reason
    assert "its annotations are for 70 x 70" in reason


@pytest.mark.parametrize(
    ("convention", "orientation"),
    [
        *(("upright", orientation) for orientation in ORIENTATIONS),
        *(("turned itself", orientation) for orientation in ORIENTATIONS),
        *(("stored", orientation) for orientation in (1, 5, 6, 7, 8)),  # others keep the size
    ],
)
def test_a_mask_of_either_way_up_lies_on_its_image(
    tmp_path: Path, convention: str, orientation: int
) -> None:
    map_ = (UPRIGHT[..., 0] > 0).astype(np.uint8)
    stored = save(tmp_path / "images" / "a.png", orientation)
    if convention == "turned itself":
        save(tmp_path / "masks" / "a.png", orientation, map_)
    else:
        labels = map_ if convention == "upright" else (stored[..., 0] > 0).astype(np.uint8)
        (tmp_path / "masks").mkdir()
        Image.fromarray(labels).save(tmp_path / "masks" / "a.png")

    source = masks(tmp_path, holdout=0)["train"]

    bright = source.images[0, 0].numpy() > 180  # type: ignore[index]
    known = source.labels[0].numpy() != 255
    assert ((source.labels[0].numpy() == 1) == bright)[known].mean() > 0.97
    assert bright.any()


@pytest.mark.parametrize("size", [[60, 40], [40, 60]])
def test_run_lengths_state_a_size_too(tmp_path: Path, size: list[int]) -> None:
    save(tmp_path / "a.png", 6)
    bright = (UPRIGHT if size == [60, 40] else STORE[6](UPRIGHT))[..., 0] > 0
    changes = np.flatnonzero(np.diff(bright.ravel(order="F"), prepend=False)).tolist()
    counts = np.diff([0, *changes, bright.size]).tolist()
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "block"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "segmentation": {"size": size, "counts": counts}}
        ],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))

    source = masks(tmp_path, holdout=0)["train"]

    bright = source.images[0, 0].numpy() > 180  # type: ignore[index]
    known = source.labels[0].numpy() != 255
    assert ((source.labels[0].numpy() == 1) == bright)[known].mean() > 0.97


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_predict_sees_images_as_viewers_show_them(tmp_path: Path, orientation: int) -> None:
    save(tmp_path / "a.png", orientation)

    assert (np.asarray(load_photo(tmp_path / "a.png")) == UPRIGHT).all()


def yolo(root: Path, upright: bool) -> None:
    """No size is stated: annotations refer to the displayed image."""
    x, y, wide, high = UPRIGHT_BOX
    shares = (x + wide / 2) / 40, (y + high / 2) / 60, wide / 40, high / 60
    save(root / "a.jpg", 6)
    (root / "a.txt").write_text(f"0 {' '.join(map(str, shares))}")
    (root / "classes.txt").write_text("block")


def voc(root: Path, upright: bool) -> None:
    x, y, wide, high = UPRIGHT_BOX if upright else stored_box(6)
    height, width = (60, 40) if upright else (40, 60)
    save(root / "a.jpg", 6)
    text = VOC.format(width=width, height=height, box=(x, y, x + wide, y + high))
    (root / "a.xml").write_text(text)


def labelme(root: Path, upright: bool) -> None:
    x, y, wide, high = UPRIGHT_BOX if upright else stored_box(6)
    height, width = (60, 40) if upright else (40, 60)
    corners = [[x, y], [x + wide, y], [x + wide, y + high], [x, y + high]]
    shape = {"label": "block", "points": corners, "shape_type": "polygon"}
    content = {"shapes": [shape], "imagePath": "a.jpg", "imageData": None}
    save(root / "a.jpg", 6)
    (root / "a.json").write_text(
        json.dumps({**content, "imageHeight": height, "imageWidth": width})
    )


def coco_file(root: Path, upright: bool) -> None:
    box, size = (UPRIGHT_BOX, (60, 40)) if upright else (stored_box(6), (40, 60))
    coco(root, {"orientation": 6, "box": box, "size": size}, suffix=".jpg")


FORMATS = [(write, True) for write in (yolo, voc, labelme, coco_file)]
FORMATS += [(write, False) for write in (voc, labelme, coco_file)]


@pytest.mark.parametrize(("write", "upright"), FORMATS)
def test_boxes_of_every_format_lie_on_the_image_that_predict_sees(
    tmp_path: Path, write: Callable[[Path, bool], None], upright: bool
) -> None:
    write(tmp_path, upright)
    (photo,) = tmp_path.glob("*.jpg")

    source = boxes(tmp_path, (96, 96), holdout=0)["train"]

    assert block_is_in_its_box(source), source.skipped
    seen = np.asarray(letterbox(load_photo(photo), (96, 96)), int).transpose(2, 0, 1)
    assert np.abs(source.images[0].numpy() - seen).mean() < 2, "upright, whatever was annotated"


@pytest.mark.parametrize(("write", "upright"), FORMATS)
def test_a_survey_counts_and_draws_boxes_as_training_takes_them(
    tmp_path: Path, write: Callable[[Path, bool], None], upright: bool
) -> None:
    write(tmp_path, upright)

    found = survey(DataConfig(path=tmp_path, holdout=0))
    (file,) = draw_survey(DataConfig(path=tmp_path, holdout=0), 1, tmp_path / "drawn")

    assert found.splits["train"].objects == {"block": 1}
    assert not found.splits["train"].skipped
    assert any("turned by EXIF" in remark for remark in found.remarks)
    drawn = np.asarray(Image.open(file).convert("RGB"), int)
    changed = np.abs(drawn - UPRIGHT).max(axis=2) > 60
    x, y, wide, high = UPRIGHT_BOX
    assert drawn.shape == UPRIGHT.shape
    lowest = np.nonzero(changed.any(axis=1))[0].max()  # the lower edge of the frame
    columns = np.nonzero(changed[lowest])[0]
    assert abs(lowest - (y + high)) <= 3
    assert abs(columns.min() - x) <= 3
    assert abs(columns.max() - (x + wide)) <= 3


def test_a_survey_skips_what_training_skips(tmp_path: Path) -> None:
    good = {"orientation": 1, "box": UPRIGHT_BOX, "size": (60, 40)}
    bad = {"orientation": 6, "box": UPRIGHT_BOX, "size": (70, 70)}
    coco(tmp_path, good, bad)

    train = survey(DataConfig(path=tmp_path, holdout=0)).splits["train"]

    assert train.images == 1
    assert "its annotations are for 70 x 70" in train.skipped[0][1]
    assert len(draw_survey(DataConfig(path=tmp_path, holdout=0), 2, tmp_path / "drawn")) == 1


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_boxes_turn_with_their_image(orientation: int) -> None:
    x, y, wide, high = stored_box(orientation)
    stored = STORE[orientation](UPRIGHT)

    turn = Turn(orientation, (stored.shape[0], stored.shape[1]))
    turned = turn.apply_to_boxes(np.array([[x, y, x + wide, y + high]], np.float32))

    x, y, wide, high = UPRIGHT_BOX
    assert turned.tolist() == [[x, y, x + wide, y + high]]
    assert (np.asarray(turn.apply(Image.fromarray(stored))) == UPRIGHT).all()


@pytest.mark.parametrize("upright", [True, False])
def test_masks_lie_on_the_image_that_predict_sees(tmp_path: Path, upright: bool) -> None:
    stored = save(tmp_path / "images" / "a.png", 6)
    (tmp_path / "masks").mkdir()
    mask = ((UPRIGHT if upright else stored)[..., 0] > 0).astype(np.uint8)
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")

    source = masks(tmp_path, holdout=0)["train"]

    seen = letterbox(load_photo(tmp_path / "images" / "a.png"), (64, 96))
    assert (source.images[0].numpy() == np.asarray(seen).transpose(2, 0, 1)).all()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_class_folders_are_seen_as_predict_sees_them(tmp_path: Path, orientation: int) -> None:
    for name in ("train/a/0.png", "train/b/0.png", "test/a/0.png", "test/b/0.png"):
        save(tmp_path / name, orientation)

    source = open_splits(DataConfig(path=tmp_path, image_size=64))["test"]

    (photo, *_) = source.images.split(1)
    seen = cover(load_photo(tmp_path / "test/a/0.png"), tuple(photo.shape[2:]))
    assert (photo[0].numpy() == np.asarray(seen).transpose(2, 0, 1)).all()
