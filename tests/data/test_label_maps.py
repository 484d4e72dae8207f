from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from hgkd_edge.data.annotations import open_masks
from hgkd_edge.data.annotations.outlines import Shape, paint
from hgkd_edge.data.sources import ImageSource
from hgkd_edge.errors import DataError
from hgkd_edge.recipe_sections import DataConfig
from hgkd_edge.survey import survey
from tests.data.annotated import NUCLEI, boxes, masks, skipped_in, write_coco
from tests.data.image_files import save_image


@pytest.mark.parametrize("annotations", [None, []])
def test_a_test_split_without_annotations_is_skipped_and_reported(
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
        assert skipped_in(splits) == [(str(file), "has no annotations; split 'test' skipped")]


def test_coco_for_images_of_another_size_skips_them(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"][1] |= {"width": 200, "height": 100}
        content["images"][2] |= {"width": 0, "height": None}

    write_coco(tmp_path, change=change)

    for source in (boxes(tmp_path, holdout=0)["train"], masks(tmp_path, holdout=0)["train"]):
        assert source.names == ["images/train0.png", "images/train2.png"]
        ((where, reason),) = source.skipped
        assert where == str(tmp_path / "images" / "train1.png")
        assert "has 100 x 50 pixels, its annotations are for 200 x 100; image skipped" in reason


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


def test_coco_boxes_without_outlines_are_not_offered_for_segmentation(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for item in content["annotations"]:
            item["segmentation"] = []

    write_coco(tmp_path, change=change)

    assert survey(DataConfig(path=tmp_path)).tasks == ["detect"]
    with pytest.raises(DataError, match="first of 3 problems.*has a box and no outline") as caught:
        masks(tmp_path, holdout=0)
    assert "\n" not in caught.value.message


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
    assert len(skipped_in(parted)) == (layout == "lists")


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
def test_an_outline_that_is_none_paints_nothing_and_is_reported(outline: Any) -> None:
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


def test_images_of_16_bits_keep_their_shades_next_to_annotations(tmp_path: Path) -> None:
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
    margin = source.labels[0] == 255  # a square image on a wide canvas
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
    """An image and a map for each value; the map's left half holds it."""
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


def test_masks_that_are_none_are_reported_and_their_images_skipped(tmp_path: Path) -> None:
    label_maps(tmp_path, "images", "masks", [1, 2, 3, 4, 5])
    save_image(tmp_path / "masks" / "2.png", np.zeros((64, 96, 3), np.uint8))
    save_image(tmp_path / "masks" / "3.png", np.zeros((32, 96), np.uint8))
    save_image(tmp_path / "masks" / "4.png", np.full((64, 96), 300, np.uint16))
    (tmp_path / "images" / "1.png").write_bytes(b"broken")

    source = masks(tmp_path, holdout=0)["train"]

    assert [Path(n).stem for n in source.names] == ["5"]
    assert source.images[0].unique().tolist() == [5]
    assert {source.classes[i] for i in source.labels[0, :, :48].unique()} == {"class 5"}, (
        "image and label stayed together"
    )
    reasons = " ".join(reason for _, reason in source.skipped)
    assert "3 channels (RGB), not one class number per pixel; turn its colors into" in reasons
    assert "has 96 x 64 pixels, its mask has 96 x 32" in reasons
    assert "holds number 300" in reasons
    assert len(source.skipped) == 4


def test_where_nothing_but_the_ignored_code_occurs_a_setting_is_named(tmp_path: Path) -> None:
    label_maps(tmp_path, "images", "masks", [255])

    with pytest.raises(DataError, match="no class but 0, 255 .255 is ignored.*segment.ignore=none"):
        masks(tmp_path, holdout=0, ignore=255)
    assert masks(tmp_path, holdout=0)["train"].classes == ["background", "class 255"]
    assert (masks(tmp_path, holdout=0, binary=True)["train"].labels[0, :, :48] == 1).all()


def test_sources_that_carry_no_annotations_are_refused() -> None:
    with pytest.raises(DataError, match="'bundled' carries neither boxes nor label maps.*--data"):
        open_masks(DataConfig(source="bundled"), binary=False)


def test_a_folder_of_text_labels_is_not_taken_for_masks(tmp_path: Path) -> None:
    label_maps(tmp_path, "images", "masks", [1])
    shutil.rmtree(tmp_path / "masks")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "1.txt").write_text("0 0.5 0.5 1 1")

    with pytest.raises(DataError, match="holds no label maps that can be read"):
        masks(tmp_path)
