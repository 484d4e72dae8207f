from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from hgkd_edge.data.annotations import open_boxes, open_masks
from hgkd_edge.data.annotations.coco import Shape, paint
from hgkd_edge.data.sources import ImageSource
from hgkd_edge.errors import DataError
from hgkd_edge.provenance import report_photos
from hgkd_edge.recipe import DataConfig

SAMPLES = Path(__file__).parent.parent / "samples"
BCCD, NUCLEI = SAMPLES / "bccd", SAMPLES / "nuclei"
OBJECT = "<object><name>{}</name><bndbox>{}</bndbox></object>"
CORNERS = "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"


def boxes(root: Path, size: Any = (240, 320), **more: Any) -> dict[str, ImageSource]:
    return open_boxes(DataConfig(path=root, image_size=size, **more))


def masks(root: Path, *, binary: bool = False, **more: Any) -> dict[str, ImageSource]:
    return open_masks(DataConfig(path=root, image_size=(64, 96), **more), binary=binary)


def save_image(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def voc(root: Path, annotations: dict[str, str], *, train: str) -> Path:
    """A small VOC folder of 100 x 50 photos; `train` names those in the list."""
    for name, xml in annotations.items():
        save_image(root / "JPEGImages" / f"{name}.png", np.zeros((50, 100, 3), np.uint8))
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{name}.xml").write_text(xml)
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(train.split()))
    return root


def as_coco(source: Path, split: str) -> dict[str, Any]:
    """The sample's XML, rewritten by other means than the reader's."""
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


def test_a_box_without_area_is_told_by_file_and_line_and_costs_nothing_else(
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
    told = capsys.readouterr().err
    assert "left out 2 files or annotations" in told
    assert told.count(where) == 1


def test_nothing_that_is_wrong_with_one_annotation_stops_the_rest(tmp_path: Path) -> None:
    good = OBJECT.format("cell", CORNERS.format(10, 10, 30, 30))
    bad = [
        OBJECT.format("cell", CORNERS.format(200, 10, 230, 30)),  # outside the photo
        OBJECT.format("cell", CORNERS.format(30, 10, 10, 30)),  # turned round
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
    assert source.labels[1, 0, 0] == -1, "a photo of nothing is kept"
    faults = dict(source.skipped)
    assert {f"{root}/Annotations/a.xml:{line}" for line in range(3, 9)} <= faults.keys()
    assert "is outside its 100 x 50 photo" in faults[f"{root}/Annotations/a.xml:3"]
    assert "class 'moon' is not known" in faults[f"{root}/Annotations/a.xml:7"]
    assert "photo left out" in faults[f"{root}/Annotations/b.xml:1"]
    assert "no image in JPEGImages/" in faults[f"{root}/ImageSets/Main/train.txt:4"]
    assert len(faults) == 8


def test_a_box_across_the_edge_is_cut_there(tmp_path: Path) -> None:
    xml = f"<annotation>{OBJECT.format('cell', CORNERS.format(-20, 10, 130, 40))}</annotation>"

    source = boxes(voc(tmp_path, {"a": xml}, train="a"), size=100)["train"]

    assert source.labels.tolist() == [[[0, 0, 10, 100, 40]]]


COCO_LAYOUTS = {
    "coco's own": ("annotations/instances_{}2017.json", "{}2017"),
    "one folder of photos": ("annotations/{}.json", "images"),
    "files in the root": ("{}.json", "images/{}"),
    "photos beside": ("{}/_annotations.coco.json", "{}"),
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
        ours, theirs = found[split].labels.clone(), wanted[split].labels
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


def test_outlines_of_every_kind_are_painted_small_over_large() -> None:
    square = np.zeros((40, 60), np.uint8)
    square[5:15, 5:15] = 1
    packed = coco_mask.encode(np.asfortranarray(square))
    compressed = {"size": [40, 60], "counts": packed["counts"].decode()}
    counted = {"size": [40, 60], "counts": [60 * 40 - 400, 400]}  # the last ten columns
    polygon = [[0.0, 0.0, 30.0, 0.0, 30.0, 40.0, 0.0, 40.0]]

    labels, faults = paint(
        [
            Shape(1, compressed, "a"),
            Shape(2, polygon, "b"),
            Shape(255, counted, "c"),
            Shape(3, [[1.0, 2.0]], "d"),
            Shape(3, {"size": [9, 9], "counts": [81]}, "e"),
        ],
        (40, 60),
    )

    assert (labels[5:15, 5:15] == 1).all()
    assert (labels[20:, :30] == 2).all()
    assert (labels[:, 50:] == 255).all()
    assert (labels[:, 30:50] == 0).all()
    assert [where for where, _ in faults] == ["d", "e"]


def test_coco_outlines_become_label_maps(tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "a.png", np.zeros((64, 96, 3), np.uint8))
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 3, "name": "cell"}, {"id": 1, "name": "dust"}],
        "annotations": [
            {"image_id": 1, "category_id": 3, "segmentation": [[0, 0, 48, 0, 48, 64, 0, 64]]},
            {"image_id": 1, "category_id": 9, "segmentation": [[0, 0, 48, 0, 48, 64, 0, 64]]},
            {"image_id": 1, "category_id": 3},
        ],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))

    source = masks(tmp_path)["train"]
    binary = masks(tmp_path, binary=True)["train"]

    assert source.classes == ["background", "dust", "cell"]
    assert (source.labels[0, :, :47] == 2).all()
    assert (source.labels[0, :, 49:] == 0).all()
    assert len(source.skipped) == 2
    assert binary.classes == ["background", "foreground"]
    assert (binary.labels[0, :, :47] == 1).all()


def test_instance_maps_tell_foreground_and_the_margin_is_ignored() -> None:
    splits = masks(NUCLEI, binary=True)

    source = splits["train"]
    assert {split: len(photos) for split, photos in splits.items()} == {"train": 24, "val": 8}
    assert source.classes == ["background", "foreground"]
    assert source.labels.shape == (24, 64, 96)
    assert set(source.labels.unique().tolist()) == {0, 1, 255}
    margin = source.labels[0] == 255  # a square photo on a wide canvas
    assert margin[:, 64:].all()
    assert not margin[:, :64].any()
    share = np.mean(np.asarray(Image.open(NUCLEI / "instances" / f"{name(source)}.png")) > 0)
    assert abs((source.labels[0, :, :64] == 1).float().mean().item() - share) < 0.02


def name(source: ImageSource) -> str:
    return Path(source.names[0]).stem


def test_instance_numbers_are_not_taken_for_classes() -> None:
    with pytest.raises(DataError, match="numbers objects.*segment.binary=true"):
        masks(NUCLEI)


def label_maps(root: Path, images: str, maps: str, values: list[int]) -> None:
    """A photo and a map for each value; the map's left half holds it."""
    for value in values:
        save_image(root / images / f"{value}.png", np.full((64, 96, 3), value, np.uint8))
        labels = np.zeros((64, 96), np.uint8)
        labels[:, :48] = value
        save_image(root / maps / f"{value}.png", labels)


def test_masks_are_found_in_folders_by_split_in_voc_and_without_a_split(tmp_path: Path) -> None:
    label_maps(tmp_path / "a", "train/images", "train/masks", [1, 2])
    label_maps(tmp_path / "a", "val/images", "val/masks", [2])
    label_maps(tmp_path / "b", "JPEGImages", "SegmentationClass", [1, 2, 255])
    lists = tmp_path / "b" / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("1\n2\n9\n")
    (lists / "val.txt").write_text("255\n")
    label_maps(tmp_path / "c", "images", "labels", list(range(1, 30)))

    folders, lists_, share = (masks(tmp_path / part) for part in "abc")

    assert [len(source) for source in folders.values()] == [2, 1]
    assert folders["train"].classes == ["background", "class 1", "class 2"]
    assert folders["train"].labels[1, 0, [0, 95]].tolist() == [2, 0]
    assert [len(source) for source in lists_.values()] == [2, 1]
    assert lists_["val"].labels[0, 0, 0] == 255
    assert lists_["train"].skipped[0][0].endswith("train.txt:3")
    assert 1 <= len(share["holdout"]) <= 10
    assert len(share["train"].classes) == 30


def test_names_of_classes_come_from_classes_txt(tmp_path: Path) -> None:
    label_maps(tmp_path, "images", "masks", [1, 2, 3])
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")

    source = masks(tmp_path, holdout=0)["train"]

    assert source.classes == ["sky", "road", "car"]
    assert len(source) == 2
    assert "mask holds class 3, classes.txt names 3" in source.skipped[0][1]


def test_masks_that_are_none_are_told_and_their_photos_left_out(tmp_path: Path) -> None:
    label_maps(tmp_path, "images", "masks", [1, 2, 3, 4, 5])
    save_image(tmp_path / "masks" / "2.png", np.zeros((64, 96, 3), np.uint8))
    save_image(tmp_path / "masks" / "3.png", np.zeros((32, 96), np.uint8))
    save_image(tmp_path / "masks" / "4.png", np.full((64, 96), 300, np.uint16))
    (tmp_path / "images" / "1.png").write_bytes(b"broken")

    source = masks(tmp_path, holdout=0)["train"]

    assert [Path(n).stem for n in source.names] == ["5"]
    assert source.images[0].unique().tolist() == [5]
    assert (source.labels[0, :, :48] == 5).all(), "photo and label stayed together"
    reasons = " ".join(reason for _, reason in source.skipped)
    assert "3 channels (RGB)" in reasons
    assert "mask is 96 x 32 pixels, its photo 96 x 64" in reasons
    assert "holds number 300" in reasons
    assert len(source.skipped) == 4


def test_masks_of_0_and_255_ask_for_binary(tmp_path: Path) -> None:
    label_maps(tmp_path, "images", "masks", [255])

    with pytest.raises(DataError, match="is 255 the object.*segment.binary=true"):
        masks(tmp_path, holdout=0)
    assert (masks(tmp_path, holdout=0, binary=True)["train"].labels[0, :, :48] == 1).all()


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


def test_sources_that_carry_no_annotations_are_refused() -> None:
    with pytest.raises(DataError, match="'bundled' carries neither boxes nor label maps.*--data"):
        open_masks(DataConfig(source="bundled"), binary=False)


def test_the_same_data_have_the_same_fingerprint_and_another_box_changes_it(tmp_path: Path) -> None:
    shutil.copytree(BCCD, tmp_path / "copy")
    before = boxes(tmp_path / "copy")["train"].fingerprint
    file = tmp_path / "copy" / "Annotations" / "BloodImage_00001.xml"
    file.write_text(file.read_text().replace("<xmin>", "<xmin>1", 1))

    assert boxes(BCCD)["train"].fingerprint == before
    assert boxes(tmp_path / "copy")["train"].fingerprint != before


def test_a_folder_of_text_labels_is_not_taken_for_masks(tmp_path: Path) -> None:
    label_maps(tmp_path, "images", "masks", [1])
    shutil.rmtree(tmp_path / "masks")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "1.txt").write_text("0 0.5 0.5 1 1")

    with pytest.raises(DataError, match="holds no label maps that can be read"):
        masks(tmp_path)
