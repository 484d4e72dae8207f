"""Malicious annotations: each costs itself, its image or its file, and one short line."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hgkd_edge.data import box_labels
from hgkd_edge.data.annotations.outlines import Shape, paint
from hgkd_edge.errors import DataError
from tests.data.annotated import CORNERS, OBJECT, boxes, voc, write_coco
from tests.data.image_files import endless, pipe

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"images": ' + "[" * 100_000, "nested more than 40 levels deep"),
        ('{"images": [' + "9" * 5000 + "]}", "too many digits"),
        (
            '{"images": [], "annotations": [], "categories": [' + "[" * 500 + "]" * 501 + "}",
            "nested more than 40 levels deep",
        ),
    ],
    ids=["deep", "digits", "deep category"],
)
def test_coco_files_that_were_made_to_harm_are_refused_in_one_short_line(
    tmp_path: Path, text: str, expected: str
) -> None:
    (tmp_path / "train.json").write_text(text)

    with pytest.raises(DataError, match=expected) as refused:
        boxes(tmp_path)

    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    "harm",
    [
        {"bbox": [int("9" * 4000)] * 4},
        {"bbox": ["x" * 10**6] * 4},
        {"bbox": [1e999, 0, 1, 1]},
        {"bbox": {"a": 1}},
        {"image_id": "9" * 10**6},
        {"category_id": [[[[["x"] * 100] * 100]]]},
    ],
    ids=["digits", "text", "infinite", "mapping", "long id", "lists"],
)
def test_an_annotation_that_was_made_to_harm_costs_itself_and_a_short_line(
    tmp_path: Path, harm: dict[str, Any]
) -> None:
    write_coco(tmp_path, change=lambda coco: coco["annotations"][0].update(harm))

    source = boxes(tmp_path, size=100, holdout=0)["train"]

    assert len(source) == 3
    assert int((source.labels[1:, :, 0] == 0).sum()) == 2
    ((_, reason),) = source.skipped
    assert len(reason) < 300


@pytest.mark.parametrize(
    "name",
    ["x" * 5000, "a\0b.png", "\ud800.png", "../" * 2000 + "etc/passwd", "/dev/zero", "C:\\a.png"],
    ids=ascii,
)
def test_a_file_name_that_was_made_to_harm_costs_its_image(tmp_path: Path, name: str) -> None:
    write_coco(tmp_path, change=lambda coco: coco["images"][0].update(file_name=name))

    source = boxes(tmp_path, size=100, holdout=0)["train"]

    assert len(source) == 2
    ((_, reason),) = source.skipped
    assert "is not there" in reason
    assert len(reason) < 300


def test_pipes_and_devices_are_no_annotations(tmp_path: Path) -> None:
    xml = f"<annotation>{OBJECT.format('cell', CORNERS.format(10, 10, 30, 40))}</annotation>"
    root = voc(tmp_path, {"a": xml, "b": xml, "c": xml}, train="a b c")
    (root / "Annotations" / "a.xml").unlink()
    os.mkfifo(root / "Annotations" / "a.xml")
    (root / "Annotations" / "b.xml").unlink()
    (root / "Annotations" / "b.xml").symlink_to("/dev/zero")

    source = boxes(root, size=100, holdout=0)["train"]

    assert source.names == ["JPEGImages/c.png"]
    assert ["named pipe" in str(source.skipped), "device" in str(source.skipped)] == [True, True]


def test_a_pipe_in_place_of_a_coco_file_or_a_list_is_refused(tmp_path: Path) -> None:
    write_coco(tmp_path).unlink()
    os.mkfifo(tmp_path / "train.json")

    with pytest.raises(DataError):
        boxes(tmp_path)


XML_HARM = {
    "entities": "<!DOCTYPE a [<!ENTITY e0 'xxxxxxxxxx'>"
    + "".join(f"<!ENTITY e{i} '{f'&e{i - 1};' * 10}'>" for i in range(1, 10))
    + "]><annotation><object><name>&e9;</name></object></annotation>",
    "a local file": "<!DOCTYPE a [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>"
    "<annotation><object><name>&e;</name></object></annotation>",
    "depth": "<a>" * 200_000,
    "size": "<annotation>" + " " * 2**20 + "</annotation>",
}


@pytest.mark.parametrize("harm", XML_HARM)
def test_xml_that_was_made_to_harm_costs_its_image(tmp_path: Path, harm: str) -> None:
    xml = f"<annotation>{OBJECT.format('cell', CORNERS.format(10, 10, 30, 40))}</annotation>"
    root = voc(tmp_path, {"a": XML_HARM[harm], "b": xml}, train="a b")

    source = boxes(root, size=100, holdout=0)["train"]

    assert source.classes == ["cell"]
    assert source.names[-1] == "JPEGImages/b.png"
    assert len(source.skipped) == 1
    assert "root:" not in str(source.skipped)


@pytest.mark.parametrize(
    ("outline", "expected"),
    [
        ([[0, 0, 3000, 3000] * 2000], "longer than 2,097,152 pixels"),
        ({"size": [3000, 3000], "counts": "o" * 300_000}, "too many digits"),
    ],
    ids=["polygon", "digits"],
)
def test_an_outline_that_would_take_for_ever_is_refused(outline: Any, expected: str) -> None:
    started = time.monotonic()

    _, ((_, reason),) = paint([Shape(1, outline, "a:1")], (3000, 3000))

    assert expected in reason
    assert time.monotonic() - started < 2


def coco_of(root: Path, boxes_of_first: int, photos: int) -> Path:
    def change(content: dict[str, Any]) -> None:
        one = {"image_id": 0, "category_id": 7, "bbox": [10, 10, 20, 30]}
        content["annotations"] += [one] * (boxes_of_first - 1)

    write_coco(root, photos=photos, change=change)
    return root


def test_an_image_of_countless_boxes_is_skipped(tmp_path: Path) -> None:
    source = boxes(coco_of(tmp_path, 20_000, 3), holdout=0)["train"]

    assert len(source) == 2
    ((_, reason),) = source.skipped
    assert "has 20,000 boxes; images with up to 4,096 are used; image skipped" in reason


def test_one_crowded_image_does_not_make_all_others_large(
    tmp_path: Path,
) -> None:
    source = boxes(coco_of(tmp_path, 3000, 4), holdout=0)["train"]

    crowded = next(i for i in range(4) if source.batch(torch.arange(4)[i : i + 1])[1].shape[1] > 1)
    others = [i for i in range(4) if i != crowded]

    assert source.batch(torch.arange(4)[others])[1].shape == (3, 1, 5)
    assert source.batch(torch.arange(4))[1].shape == (4, 3000, 5)
    assert [part.shape[1] for part in source.labels.split(1)].count(1) == 3
    assert source.subset(torch.arange(4)[others]).batch(torch.arange(3))[1].shape == (3, 1, 5)
    held = sum(boxes.nbytes for boxes in source.labels.photos)  # type: ignore[attr-defined]
    assert held == 5 * 4 * 3003
    assert box_labels.MAX_BOXES == 4096


@pytest.mark.parametrize("make", [pipe, endless])
@pytest.mark.parametrize("name", ["train.json", "annotations/train.json"])
def test_what_is_no_file_is_no_annotation(
    tmp_path: Path, make: Callable[[Path], None], name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    make(tmp_path / name)

    with pytest.raises(DataError, match="holds no boxes that can be read"):
        boxes(tmp_path)
