from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from hgkd_edge.data.annotations import open_boxes, open_masks
from hgkd_edge.data.annotations.outlines import Shape, paint
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


def write_coco(
    root: Path, split: str = "train", *, photos: int = 3, change: Change | None = None
) -> Path:
    """`SPLIT.json` with 100 x 50 photos `SPLIT0.png`, ... and on each a cat, box and outline."""
    content: dict[str, Any] = {
        "images": [
            {"id": i, "file_name": f"{split}{i}.png", "width": 100, "height": 50}
            for i in range(photos)
        ],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [
            {"image_id": i, "category_id": 7, "bbox": [10, 10, 20, 30], "segmentation": [SQUARE]}
            for i in range(photos)
        ],
    }
    for i in range(photos):
        save_image(root / "images" / f"{split}{i}.png", np.zeros((50, 100, 3), np.uint8))
    if change is not None:
        change(content)
    file = root / f"{split}.json"
    file.write_text(json.dumps(content, indent=1))
    return file


SQUARE = [10, 10, 30, 10, 30, 40, 10, 40]
Change = Callable[[dict[str, Any]], object]


def faults_of(splits: dict[str, ImageSource]) -> list[tuple[str, str]]:
    return [fault for source in splits.values() for fault in source.skipped]


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
    ("annotation", "said"),
    [
        ({"image_id": 777, "category_id": 7, "bbox": [1, 1, 9, 9]}, "image_id 777 is no image's"),
        ({"image_id": [1], "category_id": 7, "bbox": [1, 1, 9, 9]}, "image_id [1] is no image's"),
        ({"category_id": 7, "bbox": [1, 1, 9, 9]}, "image_id None is no image's"),
        ("nonsense", "'nonsense' is no annotation"),
        ({"image_id": 0, "category_id": [7], "bbox": [1, 1, 9, 9]}, "no category_id"),
    ],
)
def test_an_annotation_that_belongs_nowhere_is_told_by_line(
    tmp_path: Path, annotation: Any, said: str
) -> None:
    file = write_coco(tmp_path, change=lambda content: content["annotations"].append(annotation))

    splits = boxes(tmp_path, holdout=0)

    ((where, reason),) = splits["train"].skipped
    name, line = where.rsplit(":", 1)
    assert name == str(file)
    start = file.read_text().splitlines()[int(line) - 1 :]
    assert start[0].strip() == ("{" if isinstance(annotation, dict) else '"nonsense"')
    assert len("\n".join(start)) < 150, "the last annotation, not another"
    assert said in reason
    assert int((splits["train"].labels[..., 0] >= 0).sum()) == 3


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ({"id": 1, "file_name": "gone.png"}, "image 'gone.png' is not there"),
        ({"id": [1], "file_name": "train1.png"}, "image 'train1.png' has no id"),
        ("nonsense", "image '' has no id"),
    ],
)
def test_an_image_that_is_not_there_is_told_by_line(tmp_path: Path, image: Any, said: str) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"][1] = image

    file = write_coco(tmp_path, change=change)

    source = boxes(tmp_path, holdout=0)["train"]

    assert len(source) == 2
    told = [where for where, reason in source.skipped if said in reason]
    assert told == [f"{file}:9"]


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


@pytest.mark.parametrize("annotations", [None, []])
def test_a_test_split_without_annotations_is_left_out_and_told(
    tmp_path: Path, annotations: list[Any] | None
) -> None:
    def change(content: dict[str, Any]) -> None:
        del content["annotations"]
        if annotations is not None:
            content["annotations"] = annotations

    write_coco(tmp_path)
    write_coco(tmp_path, "val")
    file = write_coco(tmp_path, "test", change=change)

    for splits in (boxes(tmp_path), masks(tmp_path)):
        assert splits.keys() == {"train", "val"}
        assert faults_of(splits) == [(str(file), "has no annotations; split 'test' left out")]


def test_coco_for_photos_of_another_size_leaves_them_out(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"][1] |= {"width": 200, "height": 100}
        content["images"][2] |= {"width": 0, "height": None}

    write_coco(tmp_path, change=change)

    for source in (boxes(tmp_path, holdout=0)["train"], masks(tmp_path, holdout=0)["train"]):
        assert source.names == ["images/train0.png", "images/train2.png"]
        ((where, reason),) = source.skipped
        assert where == str(tmp_path / "images" / "train1.png")
        assert "has 100 x 50 pixels, its annotations are for 200 x 100; photo left out" in reason


def test_voc_for_photos_of_another_size_leaves_them_out(tmp_path: Path) -> None:
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
    names = ["my photo 1", "i0", "i1", "v1.2", "a b"]
    root = voc(tmp_path, dict.fromkeys(names, cell), train="")
    lines = ["my photo 1 ", "i0.png", "i1  -1", "v1.2", "a b.png", "a c"]
    (root / "ImageSets/Main/train.txt").write_text("\r\n".join(["\ufeff", *lines]))

    source = boxes(root, holdout=0)["train"]

    assert [name.removeprefix("JPEGImages/") for name in source.names] == [
        f"{n}.png" for n in names
    ]
    (fault,) = source.skipped
    assert fault == (f"{root}/ImageSets/Main/train.txt:7", "'a c' has no image in JPEGImages/")


@pytest.mark.parametrize("file", ["ImageSets/Main/train.txt", "classes.txt"])
def test_a_list_in_another_encoding_is_told_by_line(tmp_path: Path, file: str) -> None:
    voc(tmp_path, {"a": "<annotation/>"}, train="a")
    (tmp_path / file).write_bytes("a\né\n".encode("latin-1"))

    with pytest.raises(DataError, match=f"{file}:2: is not text in UTF-8.*save it as UTF-8"):
        boxes(tmp_path)


def test_classes_txt_may_come_from_any_editor(tmp_path: Path) -> None:
    cell = f"<annotation>{OBJECT.format('cell', CORNERS.format(10, 10, 30, 30))}</annotation>"
    root = voc(tmp_path, {"a": cell}, train="a")
    (root / "classes.txt").write_text("\ufeffcell \r\n\r\ndust\r\n\r\n", encoding="utf-8")

    source = boxes(root, holdout=0)["train"]

    assert source.classes == ["cell", "dust"]
    assert source.labels[0, 0, 0] == 0


def test_training_without_one_usable_box_is_refused_with_the_first_reason(tmp_path: Path) -> None:
    cell = f"<annotation>{OBJECT.format('cell', CORNERS.format(10, 10, 30, 30))}</annotation>"
    root = voc(tmp_path, {"a": cell, "b": cell}, train="a b")
    (root / "classes.txt").write_text("sell\n")

    with pytest.raises(
        DataError, match="not one box in 2 training photos; the first of 2.*xml:1: class 'cell'"
    ):
        boxes(root, holdout=0)


@pytest.mark.parametrize(
    "outline", [{"size": [9, 9], "counts": [81]}, [[1, 1, 2]], None], ids=["size", "points", "none"]
)
def test_training_without_one_usable_outline_is_refused(tmp_path: Path, outline: Any) -> None:
    def change(content: dict[str, Any]) -> None:
        for item in content["annotations"]:
            item["segmentation"] = outline

    write_coco(tmp_path, change=change)

    with pytest.raises(DataError, match="not one pixel of an object in 3 training.*first of 3"):
        masks(tmp_path, holdout=0)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_every_name_of_the_validation_split_means_it(tmp_path: Path, name: str) -> None:
    label_maps(tmp_path / "folders", "train/images", "train/masks", [1, 2])
    label_maps(tmp_path / "folders", f"{name}/images", f"{name}/masks", [2])
    label_maps(tmp_path / "lists", "images", "masks", [1, 2])
    (tmp_path / "lists" / "train.txt").write_text("1\n")
    (tmp_path / "lists" / f"{name}.txt").write_text("2\n")
    write_coco(tmp_path / "coco")
    write_coco(tmp_path / "coco", name)

    for layout in ("folders", "lists", "coco"):
        assert list(masks(tmp_path / layout)) == ["train", "val"], layout


def test_two_names_of_one_split_are_refused(tmp_path: Path) -> None:
    label_maps(tmp_path, "images", "masks", [1, 2])
    for name in ("train", "val", "valid"):
        (tmp_path / f"{name}.txt").write_text("1\n")

    with pytest.raises(DataError, match="both 'val' and 'valid' stand for split 'val'.*keep one"):
        masks(tmp_path)


def train_only(root: Path, layout: str) -> None:
    """30 photos that are all of split `train`."""
    if layout == "coco":
        write_coco(root, photos=30)
        return
    folder = "train/" if layout == "folders" else ""
    label_maps(root, f"{folder}images", f"{folder}masks", list(range(1, 31)))
    if layout == "lists":
        (root / "train.txt").write_text("\n".join(map(str, range(1, 31))))
        (root / "val.txt").write_text("\nabsent\n")


@pytest.mark.parametrize("layout", ["coco", "folders", "lists"])
def test_where_only_a_training_split_is_there_a_share_is_held_out(
    tmp_path: Path, layout: str
) -> None:
    train_only(tmp_path, layout)

    parted, whole = masks(tmp_path, holdout=0.3), masks(tmp_path, holdout=0)

    assert len(whole["train"]) == 30
    assert 3 <= len(parted["holdout"]) <= 15
    assert len(parted["train"]) + len(parted["holdout"]) == 30
    assert set(parted["holdout"].names) < set(whole["train"].names), "names stay the same"
    assert "holdout" not in whole
    assert len(faults_of(parted)) == (layout == "lists")


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


def packed(counts: list[int], size: tuple[int, int]) -> str:
    """COCO's own compressed text of run lengths."""
    return str(
        coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)["counts"], "ascii"
    )


@pytest.mark.parametrize("seed", range(5))
def test_compressed_run_lengths_are_read_as_coco_reads_them(seed: int) -> None:
    size = 37, 211
    noise = np.random.default_rng(seed).random(size) < 0.2 * seed  # seed 0: long runs
    noise[5:9, 100:] = True
    runs = coco_mask.encode(np.asfortranarray(noise.astype(np.uint8)))

    labels, faults = paint([Shape(1, {**runs, "counts": runs["counts"].decode()}, "a")], size)

    assert not faults
    assert (labels.astype(bool) == noise).all()


@pytest.mark.parametrize(
    "outline",
    [
        {"size": [10**9, 10**9], "counts": "abc"},  # pycocotools would end the process
        {"size": [60, 40], "counts": [2400]},
        {"size": [40, 60], "counts": [1000, 1000]},
        {"size": [40, 60], "counts": [3000, -600]},
        {"size": [40, 60], "counts": [1200.5, 1199.5]},
        {"size": [40, 60], "counts": "garbage"},
        {"size": [40, 60], "counts": "é"},
        {"size": [40, 60], "counts": packed([1200, 1199], (40, 60))},
        {"size": [40, 60], "counts": packed([1200, 1200], (40, 60)) + "o"},
        {"size": [40, 60]},
        {"counts": [1200, 1200]},
        [[0, 0, 1e9, 0, 1e9, 1e9]],
        [[0, 0, float("nan"), 0, 9, 9]],
        [[0, 0, 9, 9]],
        [0, 0, 9, 0, 9, 9],
        "outline",
    ],
    ids=str,
)
def test_an_outline_that_is_none_paints_nothing_and_is_told(outline: Any) -> None:
    labels, faults = paint([Shape(1, outline, "a:1")], (40, 60))

    assert not labels.any()
    ((where, reason),) = faults
    assert where == "a:1"
    assert "no proper outline" in reason


@pytest.mark.parametrize("by", ["coco", "classes.txt"])
def test_more_classes_than_a_label_map_holds_are_refused_at_once(tmp_path: Path, by: str) -> None:
    if by == "coco":
        more = [{"id": 1000 + i, "name": f"class {i}"} for i in range(254)]
        write_coco(tmp_path, change=lambda content: content["categories"].extend(more))
    else:
        label_maps(tmp_path, "images", "masks", [1, 2])
        (tmp_path / "classes.txt").write_text("\n".join(f"class {i}" for i in range(256)))

    with pytest.raises(DataError, match="has 256 classes; label maps hold 255.*segment.binary"):
        masks(tmp_path, holdout=0)
    assert masks(tmp_path, holdout=0, binary=True)["train"].classes == ["background", "foreground"]


@pytest.mark.parametrize("binary", [False, True])
def test_masks_stored_with_loss_are_refused(tmp_path: Path, binary: bool) -> None:
    label_maps(tmp_path, "images", "masks", [1, 2])
    blurred = Image.open(tmp_path / "masks" / "1.png")
    (tmp_path / "masks" / "1.png").unlink()
    blurred.save(tmp_path / "masks" / "1.jpg")

    source = masks(tmp_path, holdout=0, binary=binary)["train"]

    assert source.names == ["images/2.png"]
    ((where, reason),) = source.skipped
    assert where.endswith("images/1.png")
    assert "1.jpg: JPEG blurs class numbers; masks must be lossless: PNG" in reason


def test_photos_of_16_bits_keep_their_shades_beside_annotations(tmp_path: Path) -> None:
    label_maps(tmp_path, "images", "masks", [1])
    save_image(tmp_path / "images" / "1.png", np.full((64, 96), 128 * 257, np.uint16))

    assert masks(tmp_path, holdout=0)["train"].images.unique().tolist() == [128]


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
    assert "3 channels (RGB), not one class number per pixel; turn its colours into" in reasons
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
