from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hgkd_edge.data.names import split_named
from hgkd_edge.errors import DataError
from hgkd_edge.provenance import report_photos
from tests.data.annotated import BCCD, CORNERS, OBJECT, boxes, masks, voc, write_coco
from tests.data.image_files import save_image


def as_coco(source: Path, split: str) -> dict[str, Any]:
    """The sample's XML, rewritten with other code than the reader's."""
    from xml.etree import ElementTree

    classes = ["WBC", "RBC", "Platelets"]
    images, annotations = [], []
    for key, name in enumerate((source / f"ImageSets/Main/{split}.txt").read_text().split()):
        images.append({"id": key, "file_name": f"{name}.jpg", "width": 640, "height": 480})
        for item in ElementTree.parse(source / "Annotations" / f"{name}.xml").iter("object"):
            x1, y1, x2, y2 = (int(item.findtext(f"bndbox/{c}") or 0) for c in CORNER_NAMES)
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": key,
                    "category_id": 10 * (1 + classes.index(item.findtext("name") or "")),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                }
            )
    categories = [{"id": 10 * (1 + i), "name": name} for i, name in enumerate(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


CORNER_NAMES = ("xmin", "ymin", "xmax", "ymax")


def test_voc_boxes_lie_where_the_xml_says_scaled_to_the_canvas() -> None:
    source = boxes(BCCD)["train"]

    first = source.labels[0][source.labels[0, :, 0] >= 0]
    assert source.classes == ["Platelets", "RBC", "WBC"]
    assert source.names[0] == "JPEGImages/BloodImage_00001.jpg"
    assert source.images.shape == (16, 3, 240, 320)
    text = (BCCD / "Annotations" / "BloodImage_00001.xml").read_text()
    assert len(first) == text.count("<object>")
    xmin, name = (text.split(f"<{tag}>")[1].split("<")[0] for tag in ("xmin", "name"))
    assert first[0, 1] == int(xmin) / 2
    assert source.classes[int(first[0, 0])] == name


def test_a_box_without_area_is_reported_by_file_and_line_and_costs_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    splits = boxes(BCCD)

    ((where, reason),) = splits["train"].skipped
    file, line = where.rsplit(":", 1)
    assert file.endswith("BloodImage_00343.xml")
    assert "<object>" in Path(file).read_text().splitlines()[int(line) - 1]
    assert "(181, 329, 181, 329) has no area" in reason
    assert len(splits["train"]) == 16
    report_photos(splits)
    printed = capsys.readouterr().err
    assert "skipped 2 files or annotations" in printed
    assert printed.count(where) == 1


def test_nothing_that_is_wrong_with_one_annotation_stops_the_rest(tmp_path: Path) -> None:
    good = OBJECT.format("cell", CORNERS.format(10, 10, 30, 30))
    bad = [
        OBJECT.format("cell", CORNERS.format(200, 10, 230, 30)),  # outside the image
        OBJECT.format("cell", CORNERS.format(30, 10, 10, 30)),  # corners swapped
        OBJECT.format("cell", CORNERS.format(10, "ten", 30, 30)),
        OBJECT.format("cell", CORNERS.format(10, 10, "nan", 30)),
        OBJECT.format("moon", CORNERS.format(10, 10, 30, 30)),
        OBJECT.format("cell", ""),
    ]
    xml = "\n".join(["<annotation>", good, *bad, "</annotation>"])
    root = voc(
        tmp_path,
        {"a": xml, "b": "<annotation><object>", "c": "<annotation/>"},
        train="a b c absent",
    )
    (tmp_path / "classes.txt").write_text("cell\n")

    source = boxes(tmp_path, size=100)["train"]

    assert [Path(name).stem for name in source.names] == ["a", "c"], "b's XML is broken"
    assert source.labels[0].tolist() == [[0, 10, 10, 30, 30]]
    assert source.labels[1, 0, 0] == -1, "an image of nothing is kept"
    faults = dict(source.skipped)
    assert {f"{root}/Annotations/a.xml:{line}" for line in range(3, 9)} <= faults.keys()
    assert "is outside its 100 x 50 image" in faults[f"{root}/Annotations/a.xml:3"]
    assert "class 'moon' is not known" in faults[f"{root}/Annotations/a.xml:7"]
    assert "image skipped" in faults[f"{root}/Annotations/b.xml:1"]
    assert "'absent' is not in JPEGImages/" in faults[f"{root}/ImageSets/Main/train.txt:4"]
    assert len(faults) == 8


def test_a_box_across_the_edge_is_cut_there(tmp_path: Path) -> None:
    xml = f"<annotation>{OBJECT.format('cell', CORNERS.format(-20, 10, 130, 40))}</annotation>"

    source = boxes(voc(tmp_path, {"a": xml}, train="a"), size=100)["train"]

    assert source.labels[:].tolist() == [[[0, 0, 10, 100, 40]]]


COCO_LAYOUTS = {
    "coco's own": ("annotations/instances_{}2017.json", "{}2017"),
    "one folder of images": ("annotations/{}.json", "images"),
    "files in the root": ("{}.json", "images/{}"),
    "images adjacent": ("{}/_annotations.coco.json", "{}"),
}


@pytest.mark.parametrize("layout", COCO_LAYOUTS)
def test_coco_gives_the_same_boxes_as_voc_in_every_layout(tmp_path: Path, layout: str) -> None:
    file, folder = COCO_LAYOUTS[layout]
    for split in ("train", "val"):
        content = as_coco(BCCD, split)
        target = tmp_path / file.format(split)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content, indent=2))
        photos = tmp_path / folder.format(split)
        photos.mkdir(parents=True, exist_ok=True)
        for image in content["images"]:
            shutil.copy(BCCD / "JPEGImages" / image["file_name"], photos)

    found, wanted = boxes(tmp_path), boxes(BCCD)

    assert found["train"].classes == ["WBC", "RBC", "Platelets"], "in the order of their ids"
    for split in ("train", "val"):
        assert torch.equal(found[split].images, wanted[split].images)
        ours, theirs = found[split].labels[:].clone(), wanted[split].labels[:]
        ours[..., 0] = torch.where(ours[..., 0] >= 0, 2 - ours[..., 0], -1.0)
        assert torch.equal(ours, theirs)
        ((where, reason),) = found[split].skipped
        name, line = where.rsplit(":", 1)
        there = Path(name).read_text().splitlines()[int(line) - 1 :]
        assert there[0].strip() == "{"
        assert '"id": ' in there[1]
        assert '"image_id": ' in there[2]
        assert "has no area" in reason


def test_one_coco_file_for_all_holds_a_share_out(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    content = as_coco(BCCD, "train")
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1] |= {"bbox": None}
    content["annotations"][2] |= {"category_id": 7}
    content["images"].append({"id": 99, "file_name": "absent.jpg"})
    (tmp_path / "annotations" / "cells.json").write_text(json.dumps(content))
    shutil.copytree(BCCD / "JPEGImages", tmp_path / "images")

    splits = boxes(tmp_path, holdout=0.3)

    assert splits.keys() == {"train", "holdout"}
    assert sum(map(len, splits.values())) == 16
    total = sum(int((source.labels[..., 0] >= 0).sum()) for source in splits.values())
    assert total == len(content["annotations"]) - 4, "a crowd, two faults, and one without area"
    reasons = [reason for source in splits.values() for _, reason in source.skipped]
    assert any("absent.jpg" in reason for reason in reasons)
    assert any("class '7' is not known" in reason for reason in reasons)
    assert len(reasons) == 4


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ("images", "id"),
        ("annotations", "image_id"),
        ("annotations", "category_id"),
        ("categories", "id"),
    ],
)
@pytest.mark.parametrize("kind", [str, float])
def test_an_id_written_as_text_is_the_same_id(
    tmp_path: Path, part: str, field: str, kind: type
) -> None:
    def change(content: dict[str, Any]) -> None:
        for item in content[part]:
            item[field] = kind(item[field])

    write_coco(tmp_path, change=change)

    source = boxes(tmp_path, holdout=0)["train"]

    assert source.classes == ["cat"]
    assert (source.labels[:, :, 0] == 0).all()
    assert not source.skipped


def test_ids_written_as_text_are_sorted_as_numbers(tmp_path: Path) -> None:
    names = {"100": "c", "9": "a", "10": "b"}

    def change(content: dict[str, Any]) -> None:
        content["categories"] += [{"id": key, "name": name} for key, name in names.items()]

    write_coco(tmp_path, change=change)

    assert boxes(tmp_path, holdout=0)["train"].classes == ["cat", "a", "b", "c"]


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ({"image_id": 777, "category_id": 7, "bbox": [1, 1, 9, 9]}, "image_id 777 does not exist"),
        ({"image_id": [1], "category_id": 7, "bbox": [1, 1, 9, 9]}, "image_id [1] does not exist"),
        ({"category_id": 7, "bbox": [1, 1, 9, 9]}, "image_id None does not exist"),
        ("nonsense", "'nonsense' is not an annotation"),
        ({"image_id": 0, "category_id": [7], "bbox": [1, 1, 9, 9]}, "no category_id"),
    ],
)
def test_an_annotation_that_belongs_nowhere_is_reported_by_line(
    tmp_path: Path, annotation: Any, expected: str
) -> None:
    file = write_coco(tmp_path, change=lambda content: content["annotations"].append(annotation))

    splits = boxes(tmp_path, holdout=0)

    ((where, reason),) = splits["train"].skipped
    name, line = where.rsplit(":", 1)
    assert name == str(file)
    start = file.read_text().splitlines()[int(line) - 1 :]
    assert start[0].strip() == ("{" if isinstance(annotation, dict) else '"nonsense"')
    assert len("\n".join(start)) < 150, "the last annotation, not another"
    assert expected in reason
    assert int((splits["train"].labels[..., 0] >= 0).sum()) == 3


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ({"id": 1, "file_name": "gone.png"}, "image 'gone.png' is not there"),
        ({"id": [1], "file_name": "train1.png"}, "image 'train1.png' has no id"),
        ("nonsense", "image '' has no id"),
    ],
)
def test_an_image_that_is_not_there_is_reported_by_line(
    tmp_path: Path, image: Any, expected: str
) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"][1] = image

    file = write_coco(tmp_path, change=change)

    source = boxes(tmp_path, holdout=0)["train"]

    assert len(source) == 2
    printed = [where for where, reason in source.skipped if expected in reason]
    assert printed == [f"{file}:9"]


@pytest.mark.parametrize("inside", [True, False])
def test_an_absolute_file_name_may_lead_anywhere(tmp_path: Path, inside: bool) -> None:
    folder = tmp_path / "data" / "images" if inside else tmp_path / "elsewhere"

    def change(content: dict[str, Any]) -> None:
        for image in content["images"]:
            save_image(folder / image["file_name"], np.zeros((50, 100, 3), np.uint8))
            image["file_name"] = str(folder / image["file_name"])

    write_coco(tmp_path / "data", change=change)

    source = boxes(tmp_path / "data", holdout=0)["train"]

    assert source.names[0] == ("images/train0.png" if inside else "../elsewhere/train0.png")


def test_voc_for_images_of_another_size_skips_them(tmp_path: Path) -> None:
    size = "<size><width>{}</width><height>{}</height><depth>3</depth></size>"
    cell = OBJECT.format("cell", CORNERS.format(10, 10, 30, 30))
    sizes = {"right": (100, 50), "wrong": (200, 100), "turned": (50, 100), "none": (0, 0)}
    xml = {
        name: f"<annotation>{size.format(*wide)}{cell}</annotation>" for name, wide in sizes.items()
    }

    source = boxes(voc(tmp_path, xml, train=" ".join(xml)), holdout=0)["train"]

    assert [Path(name).stem for name in source.names] == ["right", "none"]
    assert "has 100 x 50 pixels, its annotations are for 200 x 100" in source.skipped[0][1]
    assert "its annotations are for 50 x 100" in source.skipped[1][1]


def test_difficult_objects_are_objects(tmp_path: Path) -> None:
    cell = OBJECT.format("cell", CORNERS.format(10, 10, 30, 30))
    cell = cell.replace("<bndbox>", "<difficult>1</difficult><bndbox>")

    source = boxes(voc(tmp_path, {"a": f"<annotation>{cell}</annotation>"}, train="a"), holdout=0)

    assert source["train"].labels[0, 0, 0] == 0


def test_voc_lists_may_hold_spaces_suffixes_and_marks(tmp_path: Path) -> None:
    cell = f"<annotation>{OBJECT.format('cell', CORNERS.format(10, 10, 30, 30))}</annotation>"
    names = ["my image 1", "i0", "i1", "v1.2", "a b"]
    root = voc(tmp_path, dict.fromkeys(names, cell), train="")
    lines = ["my image 1 ", "i0.png", "i1  -1", "v1.2", "a b.png", "a c"]
    (root / "ImageSets/Main/train.txt").write_text("\r\n".join(["\ufeff", *lines]))

    source = boxes(root, holdout=0)["train"]

    assert [name.removeprefix("JPEGImages/") for name in source.names] == [
        f"{n}.png" for n in names
    ]
    (fault,) = source.skipped
    assert fault == (f"{root}/ImageSets/Main/train.txt:7", "'a c' is not in JPEGImages/; skipped")


@pytest.mark.parametrize("file", ["ImageSets/Main/train.txt", "classes.txt"])
def test_a_list_in_another_encoding_is_reported_by_line(tmp_path: Path, file: str) -> None:
    voc(tmp_path, {"a": "<annotation/>"}, train="a")
    (tmp_path / file).write_bytes("a\né\n".encode("latin-1"))

    with pytest.raises(DataError, match=f"{file}: line 2 is not text in UTF-8.*save it as UTF-8"):
        boxes(tmp_path)


def test_classes_txt_may_come_from_any_editor(tmp_path: Path) -> None:
    cell = f"<annotation>{OBJECT.format('cell', CORNERS.format(10, 10, 30, 30))}</annotation>"
    root = voc(tmp_path, {"a": cell}, train="a")
    (root / "classes.txt").write_text("\ufeffcell \r\ndust\r\n\r\n", encoding="utf-8")

    source = boxes(root, holdout=0)["train"]

    assert source.classes == ["cell", "dust"]
    assert source.labels[0, 0, 0] == 0


def test_a_blank_line_between_class_names_is_refused(tmp_path: Path) -> None:
    cell = f"<annotation>{OBJECT.format('cell', CORNERS.format(10, 10, 30, 30))}</annotation>"
    root = voc(tmp_path / "voc", {"a": cell}, train="a")
    yolo = tmp_path / "yolo"
    yolo.mkdir()
    shutil.copy(next(root.glob("JPEGImages/*")), yolo / "a.png")
    (yolo / "a.txt").write_text("1 0.5 0.5 0.2 0.2\n")

    for folder in (root, yolo):
        (folder / "classes.txt").write_text("cell\n\ndust\n")
        with pytest.raises(DataError, match="classes.txt:2: a blank line between class names"):
            boxes(folder, holdout=0)


def test_training_without_one_usable_box_is_refused_with_the_first_reason(tmp_path: Path) -> None:
    cell = f"<annotation>{OBJECT.format('cell', CORNERS.format(10, 10, 30, 30))}</annotation>"
    root = voc(tmp_path, {"a": cell, "b": cell}, train="a b")
    (root / "classes.txt").write_text("sell\n")

    with pytest.raises(
        DataError, match="not one box in 2 training images; the first of 2.*xml:1: class 'cell'"
    ):
        boxes(root, holdout=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no boxes that can be read.*COCO.*Pascal VOC"),
        ({"train.json": "{"}, "train.json: cannot be read as JSON"),
        ({"train.json": "[]"}, "is not COCO JSON"),
        ({"val.json": '{"images": [], "annotations": [], "categories": []}'}, "no training split"),
        ({"a.json": "{}", "b.json": "{}"}, "both a.json and b.json could be"),
        ({"Annotations/a.xml": "<a/>"}, "names no class of object"),
    ],
)
def test_a_folder_of_no_use_is_one_clear_error(
    tmp_path: Path, content: dict[str, str], message: str
) -> None:
    for file, text in content.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)

    with pytest.raises(DataError, match=message):
        boxes(tmp_path)


def test_the_same_data_have_the_same_fingerprint_and_another_box_changes_it(tmp_path: Path) -> None:
    shutil.copytree(BCCD, tmp_path / "copy")
    before = boxes(tmp_path / "copy")["train"].fingerprint
    file = tmp_path / "copy" / "Annotations" / "BloodImage_00001.xml"
    file.write_text(file.read_text().replace("<xmin>", "<xmin>1", 1))

    assert boxes(BCCD)["train"].fingerprint == before
    assert boxes(tmp_path / "copy")["train"].fingerprint != before


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "Validation"), ("trn", "dev")])
def test_splits_of_coco_folders_are_found_by_any_spelling(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    for name in names:
        write_coco(tmp_path / name, name)
        for image in (tmp_path / name / "images").iterdir():
            image.rename(tmp_path / name / image.name)

    splits = boxes(tmp_path, size=100)

    assert [len(source) for source in splits.values()] == [3, 3]
    assert splits.keys() == {"train", split_named(names[1])}


def test_a_word_that_holds_a_splits_name_is_no_split(tmp_path: Path) -> None:
    write_coco(tmp_path, "latest")

    assert boxes(tmp_path, size=100, holdout=0).keys() == {"train"}


@pytest.mark.parametrize(
    "spelled",
    ["TRAIN0.PNG", "images\\train0.png", " train0.png", "Images/train0.png"],
)
def test_a_file_name_in_coco_is_found_by_other_spellings(tmp_path: Path, spelled: str) -> None:
    write_coco(tmp_path, change=lambda coco: coco["images"][0].update(file_name=spelled))

    source = boxes(tmp_path, size=100, holdout=0)["train"]

    assert len(source) == 3
    assert source.skipped == []


def test_category_names_that_look_alike_are_one_class(tmp_path: Path) -> None:
    def change(coco: dict[str, Any]) -> None:
        coco["categories"].append({"id": 8, "name": "cat "})
        coco["annotations"][0]["category_id"] = 8

    write_coco(tmp_path, change=change)

    source = boxes(tmp_path, size=100, holdout=0)["train"]

    assert source.classes == ["cat"]
    assert source.labels[..., 0].tolist() == [[0], [0], [0]]


def test_a_category_without_objects_stays_a_class_and_is_reported(tmp_path: Path) -> None:
    write_coco(
        tmp_path, change=lambda coco: coco["categories"].insert(0, {"id": 0, "name": "animals"})
    )

    source = boxes(tmp_path, size=100, holdout=0)["train"]

    assert source.classes == ["animals", "cat"]
    assert "without a training object: 'animals'" in source.remarks[0]


@pytest.mark.parametrize("second", ["a.jpg", "A.png"])
def test_two_images_of_one_stem_are_reported_and_not_guessed(tmp_path: Path, second: str) -> None:
    xml = f"<annotation>{OBJECT.format('cell', CORNERS.format(10, 10, 30, 40))}</annotation>"
    root = voc(tmp_path, {"a": xml, "b": xml}, train="a b")
    save_image(root / "JPEGImages" / second, np.zeros((50, 100, 3), np.uint8))

    source = boxes(root, size=100, holdout=0)["train"]

    ambiguous = second == "a.jpg"  # `A` is another name where `a` is there too
    assert len(source) == (1 if ambiguous else 2)
    assert ("can be a.jpg, a.png in JPEGImages/" in str(source.skipped)) == ambiguous


def test_voc_names_match_in_any_unicode_form_and_unread_formats_are_named(tmp_path: Path) -> None:
    xml = f"<annotation>{OBJECT.format('cell ', CORNERS.format(10, 10, 30, 40))}</annotation>"
    root = voc(tmp_path, {unicodedata.normalize("NFD", "é"): xml}, train="é")
    (root / "JPEGImages" / "x.heic").touch()
    (root / "ImageSets/Main/train.txt").rename(root / "ImageSets/Main/Training.txt")

    source = boxes(root, size=100, holdout=0)["train"]

    assert len(source) == 1
    assert source.classes == ["cell"]
    assert "x.heic" in str(source.skipped)


@pytest.mark.parametrize("names", [("Train", "Valid"), ("training", "dev")])
def test_splits_of_mask_folders_are_found_by_any_spelling(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    for name in names:
        save_image(tmp_path / name / "images" / "a.png", np.zeros((50, 100, 3), np.uint8))
        save_image(tmp_path / name / "masks" / "A.png", np.eye(50, 100, dtype=np.uint8))

    splits = masks(tmp_path)

    assert {split: len(source) for split, source in splits.items()} == {"train": 1, "val": 1}


def test_two_masks_of_one_image_are_reported_and_not_guessed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_image(tmp_path / "images" / f"{name}.png", np.zeros((50, 100, 3), np.uint8))
        save_image(tmp_path / "masks" / f"{name}.png", np.eye(50, 100, dtype=np.uint8))
    save_image(tmp_path / "masks" / "a.tif", np.zeros((50, 100), np.uint8))

    source = masks(tmp_path, holdout=0)["train"]

    assert source.names == ["images/b.png"]
    assert "'a' can be a.png, a.tif in masks/" in str(source.skipped)
