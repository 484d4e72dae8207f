"""The formats of labeling tools: each gives the same boxes as Pascal VOC."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from hgkd_edge.data.find_images import find_images
from hgkd_edge.data.sources import held_out_split, why_unlabeled
from hgkd_edge.errors import DataError
from hgkd_edge.recipe_sections import DataConfig
from hgkd_edge.survey import draw_survey, survey
from tests.data.annotated import BCCD, boxes, masks
from tests.data.image_files import save_image

CLASSES = ["Platelets", "RBC", "WBC"]
STEMS = sorted(file.stem for file in (BCCD / "Annotations").glob("*.xml"))[:4]
TRAIN, VAL = STEMS[:3], STEMS[3:]


def objects_of(stem: str) -> list[tuple[str, list[float]]]:
    """Names and corners of a sample's objects."""
    root = ElementTree.parse(BCCD / "Annotations" / f"{stem}.xml").getroot()
    return [
        (
            item.findtext("name", ""),
            [float(item.findtext(f"bndbox/{c}", "0")) for c in ("xmin", "ymin", "xmax", "ymax")],
        )
        for item in root.iter("object")
    ]


def image_of(stem: str) -> Path:
    return next((BCCD / "JPEGImages").glob(f"{stem}.*"))


def copy_image(stem: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(image_of(stem), folder))


def yolo_lines(stem: str, *, polygon: bool = False) -> str:
    with Image.open(image_of(stem)) as image:
        width, height = image.size
    lines = []
    for name, (x1, y1, x2, y2) in objects_of(stem):
        numbers = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height]
        numbers += [(x2 - x1) / width, (y2 - y1) / height]
        if polygon:
            corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
            numbers = [
                n / side for c in corners for n, side in zip(c, (width, height), strict=True)
            ]
        lines.append(" ".join([str(CLASSES.index(name)), *map(str, numbers)]))
    return "\n".join(lines)


def write_yolo(root: Path, layout: str, *, polygon: bool = False) -> Path:
    """Write the samples as YOLO, in the layout of a tool; returns the path to open."""
    listed: dict[str, list[str]] = {"train": [], "valid": []}
    for split, stems in (("train", TRAIN), ("valid", VAL)):
        for stem in stems:
            images, labels = {
                "ultralytics": (f"images/{split}", f"labels/{split}"),
                "roboflow": (f"{split}/images", f"{split}/labels"),
                "cvat": (f"obj_{split}_data", f"obj_{split}_data"),
                "labelimg": (split, split),
            }[layout]
            image = copy_image(stem, root / images)
            listed[split].append(f"data/{images}/{image.name}")
            (root / labels).mkdir(parents=True, exist_ok=True)
            (root / labels / f"{stem}.txt").write_text(yolo_lines(stem, polygon=polygon) + "\n")
    names = "\n".join(f"  {i}: {name}" for i, name in enumerate(CLASSES))
    if layout == "ultralytics":
        text = f"path: .\ntrain: images/train\nval: images/valid\nnames:\n{names}\n"
        (root / "data.yaml").write_text(text)
    elif layout == "roboflow":
        text = f"train: ../train/images\nval: ../valid/images\nnc: 3\nnames: {CLASSES}\n"
        (root / "data.yaml").write_text(text)
    elif layout == "cvat":
        for split, lines in listed.items():
            (root / f"{split}.txt").write_text("\n".join(lines))
        text = f"train: train.txt\nval: valid.txt\nnames:\n{names}\n"
        (root / "data.yaml").write_text(text)
    else:
        (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


def reference(root: Path) -> dict[str, np.ndarray]:
    """The same images as Pascal VOC: stem -> boxes."""
    for stem in STEMS:
        copy_image(stem, root / "JPEGImages")
        (root / "Annotations").mkdir(exist_ok=True)
        shutil.copy(BCCD / "Annotations" / f"{stem}.xml", root / "Annotations")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return by_stem(boxes(root, holdout=0))


def by_stem(splits: dict[str, Any]) -> dict[str, np.ndarray]:
    found = {}
    for source in splits.values():
        for name, own in zip(source.names, source.labels, strict=True):
            rows = own[own[:, 0] >= 0].numpy()
            found[Path(name).stem] = rows[np.lexsort(rows.round(2).T)]
    return found


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for stem, rows in wanted.items():
        np.testing.assert_allclose(found[stem], rows, atol=1e-2)


@pytest.mark.parametrize("polygon", [False, True])
@pytest.mark.parametrize("layout", ["ultralytics", "roboflow", "cvat", "labelimg"])
def test_yolo_gives_the_same_boxes_as_voc(tmp_path: Path, layout: str, polygon: bool) -> None:
    root = write_yolo(tmp_path / "yolo", layout, polygon=polygon)

    splits = boxes(root, holdout=0)

    assert {name: len(source) for name, source in splits.items()} == {"train": 3, "val": 1}
    assert splits["train"].classes == CLASSES
    assert_same(by_stem(splits), reference(tmp_path / "voc"))


@pytest.mark.parametrize(
    ("images", "xmls"),
    [(".", "."), ("images", "annotations"), ("a/pictures", "b/xml"), ("images", ".")],
)
def test_voc_xml_may_lie_in_any_folder(tmp_path: Path, images: str, xmls: str) -> None:
    root = tmp_path / "voc"
    for stem in STEMS:
        copy_image(stem, root / images)
        (root / xmls).mkdir(parents=True, exist_ok=True)
        shutil.copy(BCCD / "Annotations" / f"{stem}.xml", root / xmls)
    copy_image(STEMS[0], root / images).rename(root / images / "unlabeled.jpg")
    copy_image(STEMS[0], root / images)
    (root / "classes.txt").write_text("\n".join(CLASSES))

    splits = boxes(root, holdout=0)

    assert_same(by_stem(splits), reference(tmp_path / "reference"))
    assert "1 image not used: without an XML file" in splits["train"].remarks


def test_voc_splits_may_be_folders(tmp_path: Path) -> None:
    for split, stems in (("train", TRAIN), ("test", VAL)):
        for stem in stems:
            copy_image(stem, tmp_path / split)
            shutil.copy(BCCD / "Annotations" / f"{stem}.xml", tmp_path / split)

    splits = boxes(tmp_path)

    assert {name: len(source) for name, source in splits.items()} == {"train": 3, "test": 1}


def write_labelme(root: Path, *, adjacent: bool, kind: str = "rectangle") -> None:
    for stem in STEMS:
        image = copy_image(stem, root / ("." if adjacent else "images"))
        with Image.open(image) as opened:
            width, height = opened.size
        shapes = [
            {
                "label": name,
                "points": [[x1, y1], [x2, y2]]
                if kind == "rectangle"
                else [[x1, y1], [x2, y1], [x2, y2], [x1, y2]],
                "shape_type": kind,
                "flags": {},
            }
            for name, (x1, y1, x2, y2) in objects_of(stem)
        ]
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": image.name if adjacent else f"..\\images\\{image.name}",
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        folder = root / ("." if adjacent else "json")
        folder.mkdir(exist_ok=True)
        (folder / f"{stem}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("adjacent", [True, False])
@pytest.mark.parametrize("kind", ["rectangle", "polygon"])
def test_labelme_gives_the_same_boxes_as_voc(tmp_path: Path, adjacent: bool, kind: str) -> None:
    root = tmp_path / "labelme"
    write_labelme(root, adjacent=adjacent, kind=kind)
    (root / "classes.txt").write_text("\n".join(CLASSES))

    assert_same(by_stem(boxes(root, holdout=0)), reference(tmp_path / "voc"))


def test_yolo_polygons_and_labelme_shapes_paint_the_same_map(tmp_path: Path) -> None:
    write_labelme(tmp_path / "labelme", adjacent=True, kind="polygon")
    (tmp_path / "labelme/classes.txt").write_text("\n".join(CLASSES))
    yolo = masks(write_yolo(tmp_path / "yolo", "labelimg", polygon=True))
    labelme = masks(tmp_path / "labelme", holdout=0)

    assert yolo["train"].classes == ["background", *CLASSES] == labelme["train"].classes
    mine = dict(zip(yolo["train"].names, yolo["train"].labels, strict=True))
    other = dict(zip(labelme["train"].names, labelme["train"].labels, strict=True))
    for name, labels in mine.items():
        same = (labels == other[Path(name).name]).float().mean()
        assert same > 0.99, "normalized corners round to a neighboring pixel"


@pytest.mark.parametrize("label", [None, "", "\n\n"])
def test_a_missing_or_empty_yolo_label_is_an_image_without_objects(
    tmp_path: Path, label: str | None
) -> None:
    root = write_yolo(tmp_path, "ultralytics")
    file = root / f"labels/train/{TRAIN[0]}.txt"
    file.unlink() if label is None else file.write_text(label)

    source = boxes(root)["train"]

    assert len(source) == 3
    assert len(by_stem({"train": source})[TRAIN[0]]) == 0


def test_a_yolo_test_split_without_label_files_is_skipped_and_reported(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, "ultralytics")
    copy_image(TRAIN[0], root / "images/test")
    file = root / "data.yaml"
    file.write_text(f"test: images/test\n{file.read_text()}")

    splits = boxes(root)

    assert splits.keys() == {"train", "val"}
    (fault,) = splits["train"].skipped
    assert fault == (str(root), "no label file for 1 image; split 'test' skipped")


def test_images_of_train_that_are_held_out_too_are_counted_in_a_warning(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, "ultralytics")
    file = root / "data.yaml"  # as Ultralytics' coco128.yaml
    file.write_text(file.read_text().replace("val: images/valid", "val: ./images/train"))

    for remarks in (boxes(root)["train"].remarks, survey(DataConfig(path=root)).remarks):
        (line,) = (line for line in remarks if "shares" in line)
        assert line.startswith("warning: split 'train' shares 3 images with held-out splits, such")


def test_a_held_out_split_without_a_box_is_not_scored(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, "ultralytics")
    (root / f"labels/valid/{VAL[0]}.txt").write_text("")

    splits = boxes(root)

    assert held_out_split(splits) == "val"
    assert held_out_split(splits, labeled=True) is None
    assert why_unlabeled(splits["val"]) == "no box in 1 image"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("7 .5 .5 .1 .1", "class 7 is not one of 0 to 2"),
        ("-1 .5 .5 .1 .1", "class -1 is not one of"),
        ("0.5 .5 .5 .1 .1", "class 0.5 is not one of"),
        ("cat .5 .5 .1 .1", "not a line of numbers"),
        ("0 .5 .5 .1", "3 numbers after the class"),
        ("0 .1 .1 .2 .2 .3 .3 .4", "7 numbers after the class"),
        ("0 320 240 50 50", "not normalized"),
        ("0 nan .5 .1 .1", "not normalized"),
        ("0 .5 .5 0 .1", "has no area"),
    ],
)
def test_a_bad_yolo_line_costs_itself_and_is_named(tmp_path: Path, line: str, reason: str) -> None:
    root = write_yolo(tmp_path, "ultralytics")
    file = root / f"labels/train/{TRAIN[0]}.txt"
    good = file.read_text().splitlines()
    file.write_text("\n".join([line, *good]))

    source = boxes(root)["train"]

    assert len(by_stem({"train": source})[TRAIN[0]]) == len(good)
    (fault,) = source.skipped
    assert fault[0] == f"{file}:1"
    assert reason in fault[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: nowhere\nnames: [a]", "train: 'nowhere' does not exist"),
        ("train: images/train\nnames: {0: a, 2: b}", "0 to 1 without a gap"),
        ("train: images/train\nnames: [a, a, b]", "'a' is listed more than once"),
        ("train: images/train\nnames: []", "must list the classes"),
        ("val: images/valid\nnames: [a]", "does not describe a YOLO data set"),
        ("train: [", "not valid YAML at line"),
    ],
)
def test_a_bad_data_yaml_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = write_yolo(tmp_path, "ultralytics") / "data.yaml"
    file.write_text(text)

    with pytest.raises(DataError, match=message):
        boxes(file)


ODD_NAMES = ["yes", "NO", "on", "off", "true", "null", "01", "1e3", "1_000", "12:30", "2020-01-01"]


@pytest.mark.parametrize(
    "text",
    [
        "names: [" + ", ".join(ODD_NAMES) + "]",
        "names:\n" + "\n".join(f"- {name}" for name in ODD_NAMES),
        "names:\n" + "\n".join(f"  {i}: {name}" for i, name in enumerate(ODD_NAMES)),
        "names: [" + ", ".join(f"'{name}'" for name in ODD_NAMES) + "]",
    ],
)
def test_names_of_a_data_yaml_are_what_is_written(tmp_path: Path, text: str) -> None:
    file = write_yolo(tmp_path, "ultralytics") / "data.yaml"
    file.write_text(f"train: images/train\n{text}\n")

    assert boxes(file)["train"].classes == ODD_NAMES


def test_labels_that_are_nowhere_are_an_error_not_images_without_objects(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, "ultralytics")
    (root / "labels").rename(root / "annotations")

    with pytest.raises(DataError, match="none of its images has a label file"):
        boxes(root)


def test_keypoints_of_yolo_pose_are_boxes(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "yolo", "ultralytics")
    yaml = root / "data.yaml"
    yaml.write_text(yaml.read_text() + "kpt_shape: [2, 3]\n")
    for file in root.glob("labels/*/*.txt"):
        lines = [f"{line} .1 .1 2 .2 .2 0" for line in file.read_text().splitlines()]
        file.write_text("\n".join(lines))

    assert_same(by_stem(boxes(root, holdout=0)), reference(tmp_path / "voc"))


@pytest.mark.parametrize("path", ["/etc/passwd", "../../secret.png", "absent.png"])
def test_a_labelme_file_cannot_name_an_image_outside_its_folder(tmp_path: Path, path: str) -> None:
    root = tmp_path / "data"
    write_labelme(root, adjacent=True)
    save_image(tmp_path / "secret.png", np.zeros((4, 4, 3), np.uint8))
    file = root / f"{STEMS[0]}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "imagePath": path}))

    source = boxes(root, holdout=0)["train"]

    assert f"{STEMS[0]}.jpg" in source.names, "the image of the same name is taken"


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"label": "a", "points": [[1, 2]], "shape_type": "point"}, "shape_type 'point'"),
        ({"label": "a", "points": [[1, 2], [3, 4]], "shape_type": "polygon"}, "of 2 points"),
        ({"label": "a", "points": [[1, "x"]], "shape_type": "polygon"}, "could not convert"),
        ({"points": []}, "no proper shape"),
        ("text", "no proper shape"),
        ({"label": "a", "points": [[1e999, 0], [1, 1], [2, 2]]}, "not finite"),
    ],
)
def test_a_bad_labelme_shape_costs_itself_and_is_named(
    tmp_path: Path, shape: Any, reason: str
) -> None:
    write_labelme(tmp_path, adjacent=True)
    file = tmp_path / f"{STEMS[0]}.json"
    content = json.loads(file.read_text())
    content["shapes"].insert(0, shape)
    file.write_text(json.dumps(content))

    source = boxes(tmp_path, holdout=0)["train"]

    (fault,) = source.skipped
    assert fault[0] == f"{file}: shapes[0]"
    assert reason in fault[1]


def test_a_survey_counts_what_training_gets(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, "ultralytics", polygon=True)
    (root / f"labels/train/{TRAIN[0]}.txt").write_text("9 .5 .5 .1 .1\n")

    found = survey(DataConfig(path=root))

    source = boxes(root)["train"]
    train = found.splits["train"]
    assert (found.format, list(found.tasks)) == ("YOLO", ["detect", "segment"])
    assert (train.images, train.empty) == (len(source), 1)
    assert list(train.skipped) == source.skipped
    assert sum((train.objects or {}).values()) == train.outlines
    assert train.outlines == sum(int((own[:, 0] >= 0).sum()) for own in source.labels)


def test_a_survey_draws_the_images_that_are_annotated(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "yolo", "ultralytics")

    files = draw_survey(DataConfig(path=root), 2, tmp_path / "pictures")

    assert [file.stem for file in files] == [f"0000-{TRAIN[0]}", f"0002-{TRAIN[-1]}"]
    with Image.open(files[0]) as drawn, Image.open(image_of(TRAIN[0])) as plain:
        assert drawn.size == plain.size
        assert np.abs(np.asarray(drawn.convert("RGB"), int) - np.asarray(plain, int)).max() > 100


def test_a_survey_draws_16_bit_images_as_training_sees_them(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "yolo", "ultralytics")
    for file in root.glob("images/train/*"):
        with Image.open(file) as image:
            gray = np.asarray(image.convert("L")).astype(np.uint16)
        Image.fromarray(gray * 16).save(file.with_suffix(".png"))  # 12 bits
        file.unlink()

    drawn = draw_survey(DataConfig(path=root), 1, tmp_path / "pictures")[0]

    with Image.open(image_of(TRAIN[0])) as plain, Image.open(drawn) as picture:
        difference = np.asarray(picture.convert("L"), int) - np.asarray(plain.convert("L"), int)
    assert np.median(np.abs(difference)) < 3  # boxes aside


def test_a_survey_of_class_folders_counts_images_per_class(tmp_path: Path) -> None:
    for i in range(5):
        save_image(tmp_path / "train/cat" / f"{i}.png", np.zeros((8, 8, 3), np.uint8))
    save_image(tmp_path / "train/dog/a.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "train/dog/b.heic").write_bytes(b"")

    found = survey(DataConfig(path=tmp_path, holdout=0))

    assert found.splits["train"].objects == {"cat": 5, "dog": 1}
    assert [where for where, _ in found.splits["train"].skipped] == ["train/dog/b.heic"]
    assert list(found.tasks) == ["classify"]


def test_two_images_of_one_name_get_two_pictures(tmp_path: Path) -> None:
    for folder in ("p", "q"):
        copy_image(TRAIN[0], tmp_path / "data" / folder)
        xml = BCCD / "Annotations" / f"{TRAIN[0]}.xml"
        shutil.copy(xml, tmp_path / "data" / folder)

    config = DataConfig(path=tmp_path / "data", holdout=0)
    files = draw_survey(config, 4, tmp_path / "pictures")

    assert len(set(files)) == 2
    assert all(file.is_file() for file in files)


@pytest.mark.parametrize(
    "text", ['{"shapes": [], "imagePath": "x"', '{"shapes": 1, "imagePath": "a"}']
)
def test_labelme_files_none_of_which_can_be_read_are_refused_with_the_reason(
    tmp_path: Path, text: str
) -> None:
    write_labelme(tmp_path, adjacent=True)
    for file in tmp_path.glob("*.json"):
        file.write_text(text)

    with pytest.raises(DataError, match="not one image can be used; the first problem, .*json"):
        survey(DataConfig(path=tmp_path, holdout=0))
    assert draw_survey(DataConfig(path=tmp_path, holdout=0), 1, tmp_path / "pictures") == []


@pytest.mark.parametrize("content", [b"a: &a [*a, *a]", b"names: [\xff]", b"train: ["])
def test_a_data_yaml_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    write_yolo(tmp_path, "ultralytics")
    (tmp_path / "data.yaml").write_bytes(content)

    with pytest.raises(DataError, match=r"data.yaml: "):
        survey(DataConfig(path=tmp_path))


def test_a_path_that_is_too_long_is_no_folder(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, "ultralytics") / "data.yaml"
    file.write_text(file.read_text().replace("path: .", f"path: {'x' * 5000}"))

    assert survey(DataConfig(path=tmp_path)).splits["train"].images == 3


def test_a_link_to_itself_costs_itself(tmp_path: Path) -> None:
    save_image(tmp_path / "a/good.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "a/x.png").symlink_to("x.png")

    assert find_images(tmp_path).names == ["a/good.png", "a/x.png"]
