"""Label maps whose numbers are codes: classes, ignored codes, and messages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hgkd_edge.errors import DataError
from tests.data.annotated import masks
from tests.data.image_files import save_image

SHAPE = (64, 96)


def regions(*codes: int) -> np.ndarray:
    """A label map of background with a block of each code, of equal size, side by side."""
    labels = np.zeros(SHAPE, np.uint8)
    width = SHAPE[1] // len(codes)
    for i, code in enumerate(codes):
        labels[20:, i * width : (i + 1) * width - 4] = code
    return labels


def bordered(*codes: int, border: int = 255, wide: int = 3) -> np.ndarray:
    """The same with a border around each block, as Pascal VOC draws them."""
    labels = regions(*codes)
    objects = labels > 0
    grown = objects.copy()
    for _ in range(wide):
        inside = grown.copy()
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            grown |= np.roll(inside, step, axis)
    labels[grown & ~objects] = border
    return labels


def corner(code: int, share: float, *codes: int) -> np.ndarray:
    """`regions` with the top rows, `share` of all, in `code`."""
    labels = regions(*codes)
    labels[: round(SHAPE[0] * share)] = code
    return labels


def folder(root: Path, *maps: np.ndarray) -> Path:
    for i, labels in enumerate(maps):
        save_image(root / "images" / f"{i}.png", np.zeros((*SHAPE, 3), np.uint8))
        save_image(root / "masks" / f"{i}.png", labels)
    return root


@pytest.mark.parametrize(
    ("labels", "classes", "ignored"),
    [
        (regions(128, 255), [0, 128, 255], None),
        (regions(85, 170), [0, 85, 170], None),
        (regions(85, 170, 255), [0, 85, 170, 255], None),
        (regions(64, 128, 191, 255), [0, 64, 128, 191, 255], None),
        (regions(255), [0, 255], None),
        (regions(1, 2), [0, 1, 2], None),
        (regions(2, 7), [0, 2, 7], None),
        (bordered(1, 2), [0, 1, 2], 255),
        (bordered(12, 15), [0, 12, 15], 255),
        (corner(255, 0.15, 1, 2, 3), [0, 1, 2, 3], 255),
        (corner(255, 0.15, 1, 2, 4), [0, 1, 2, 4], 255),
    ],
    ids=lambda value: ",".join(map(str, np.unique(value))) if isinstance(value, np.ndarray) else "",
)
def test_every_code_that_occurs_is_a_class_and_255_where_it_behaves_like_one(
    tmp_path: Path, labels: np.ndarray, classes: list[int], ignored: int | None
) -> None:
    source = masks(folder(tmp_path, labels), holdout=0)["train"]

    names = [f"class {code}" if code else "background" for code in classes]
    assert source.classes == names
    for i, code in enumerate(classes):
        assert ((source.labels[0].numpy() == i) == (labels == code)).all(), code
    assert ((source.labels[0].numpy() == 255) == (labels == 255)).all() == (ignored == 255) or (
        255 not in labels
    )
    assert source.decided["segment.codes"] == classes
    (remark,) = source.remarks
    assert all(str(code) in remark for code in classes)
    if ignored is not None:
        assert f"255 is ignored ({(labels == 255).mean():.1%} of the pixels)" in remark
        assert source.ignored == pytest.approx((labels == 255).mean())
    elif 255 in classes:
        assert "255 is a class" in remark
        assert "segment.ignore=255" in remark


@pytest.mark.parametrize("labels", [corner(255, 0.6, 1, 2), corner(255, 0.25, 40, 90)], ids=str)
def test_where_255_may_be_either_a_setting_is_asked_for(tmp_path: Path, labels: np.ndarray) -> None:
    root = folder(tmp_path, labels)
    codes = np.unique(labels).tolist()

    with pytest.raises(DataError, match="is not clear.*segment.ignore=255.*segment.ignore=none"):
        masks(root, holdout=0)

    ignored = masks(root, holdout=0, ignore=255)["train"]
    kept = masks(root, holdout=0, ignore="none")["train"]
    assert len(ignored.classes) == len(codes) - 1
    assert (ignored.labels == 255).float().mean() == pytest.approx((labels == 255).mean())
    assert kept.classes[-1] == "class 255"
    assert kept.ignored == 0


def test_any_code_can_be_ignored_background_too(tmp_path: Path) -> None:
    labels = regions(1, 2)

    source = masks(folder(tmp_path, labels), holdout=0, ignore=0)["train"]

    assert source.classes == ["class 1", "class 2"]
    assert ((source.labels[0].numpy() == 255) == (labels == 0)).all()
    assert source.ignored == pytest.approx((labels == 0).mean())


def test_what_was_decided_reads_other_label_maps_alike(tmp_path: Path) -> None:
    first = masks(folder(tmp_path / "a", regions(128, 255)), holdout=0)["train"]
    codes = first.decided["segment.codes"]
    ignore = first.decided["segment.ignore"]

    other = masks(folder(tmp_path / "b", regions(255)), holdout=0, codes=codes, ignore=ignore)
    strange = folder(tmp_path / "c", regions(255), regions(77))
    refused = masks(strange, holdout=0, codes=codes, ignore=ignore)["train"]

    assert other["train"].classes == first.classes
    assert other["train"].labels.unique().tolist() == [0, 2]
    assert "mask holds code 77; segment.codes are 0, 128, 255" in refused.skipped[0][1]


def test_the_margin_is_no_class_where_255_is_one(tmp_path: Path) -> None:
    labels = np.full((64, 64), 255, np.uint8)
    labels[:, :32] = 0
    save_image(tmp_path / "images" / "a.png", np.zeros((64, 64, 3), np.uint8))
    save_image(tmp_path / "masks" / "a.png", labels)

    source = masks(tmp_path, holdout=0)["train"]

    assert source.labels[0, 0].unique().tolist() == [0, 1, 255]
    assert (source.labels[0, :, 64:] == 255).all()
    assert source.ignored == 0, "the margin is no part of the image"


def test_codes_can_be_given_to_the_names_of_classes_txt(tmp_path: Path) -> None:
    root = folder(tmp_path, regions(128, 255))
    (root / "classes.txt").write_text("ground\ncell\nnucleus\n")

    source = masks(root, holdout=0, codes=[0, 128, 255])["train"]

    assert source.classes == ["ground", "cell", "nucleus"]
    assert source.labels.unique().tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="classes.txt names 3 classes, segment.codes has 2"):
        masks(root, holdout=0, codes=[0, 128])


def test_codes_of_no_training_mask_are_reported(tmp_path: Path) -> None:
    folder(tmp_path / "train", regions(1))
    folder(tmp_path / "val", regions(1, 2))

    source = masks(tmp_path)["train"]

    assert "not in the training split: 2" in source.remarks[0]


def test_numbers_keep_the_gaps_that_older_runs_were_trained_with(tmp_path: Path) -> None:
    source = masks(folder(tmp_path, regions(1, 4)), holdout=0, codes="numbers")["train"]

    assert source.classes == ["background", "class 1", "class 2", "class 3", "class 4"]
    assert source.labels.unique().tolist() == [0, 1, 4]


def test_masks_without_a_training_split_are_an_error(tmp_path: Path) -> None:
    folder(tmp_path / "val", regions(1, 2))

    with pytest.raises(DataError, match="no image of a training split"):
        masks(tmp_path)
