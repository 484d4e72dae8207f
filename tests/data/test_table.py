from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from hgkd_edge.data.sources import (
    held_out_split,
    how_to_label,
    open_splits,
    unlearned_classes,
    why_unlabeled,
)
from hgkd_edge.errors import DataError
from hgkd_edge.recipe_sections import DataConfig
from hgkd_edge.survey import survey
from tests.data.image_files import save_image


def write_table(photos: Path, table: Path, *, header: list[str], split: bool = False) -> Path:
    """A CSV file next to the images that lists all training images."""
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        for i, file in enumerate(sorted((photos / "train").rglob("*.webp"))):
            row = [str(file.relative_to(table.parent)), file.parent.name]
            writer.writerow([*row, "val" if i % 4 == 0 else "train"] if split else row)
    return table


def config(table: Path) -> DataConfig:
    return DataConfig(source="folder", path=table, image_size=32, holdout=0.2)


def test_a_table_gives_the_images_and_labels_of_its_folder(photos: Path) -> None:
    table = write_table(
        photos, photos / "labels.csv", header=["image", "label", "split"], split=True
    )

    splits = open_splits(config(table))

    folder = open_splits(DataConfig(source="folder", path=photos, image_size=32))
    assert {name: len(source) for name, source in splits.items()} == {"train": 36, "val": 12}
    assert splits["train"].classes == folder["train"].classes
    both = dict(zip(folder["train"].names, folder["train"].labels.tolist(), strict=True))
    for name, label in zip(splits["train"].names, splits["train"].labels.tolist(), strict=True):
        assert both[name] == label


def test_without_splits_a_share_is_held_out(photos: Path) -> None:
    table = write_table(photos, photos / "plain.csv", header=["file", "class"])

    splits = open_splits(config(table))

    assert set(splits) == {"train", "holdout"}
    assert len(splits["train"]) + len(splits["holdout"]) == 48


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "dev"])
def test_every_name_of_the_validation_split_means_it(photos: Path, name: str) -> None:
    table = write_table(photos, photos / "v.csv", header=["image", "label", "split"], split=True)
    table.write_text(table.read_text().replace(",val", f",{name}"))

    splits = open_splits(config(table))

    assert {split: len(source) for split, source in splits.items()} == {"train": 36, "val": 12}


def test_where_all_rows_are_of_training_a_share_is_held_out(photos: Path) -> None:
    table = write_table(photos, photos / "t.csv", header=["image", "label", "split"], split=True)
    table.write_text(table.read_text().replace(",val", ",train"))

    splits = open_splits(config(table))

    assert splits.keys() == {"train", "holdout"}
    assert len(splits["train"]) + len(splits["holdout"]) == 48


def test_a_file_that_is_not_there_is_skipped_and_named(photos: Path) -> None:
    table = write_table(photos, photos / "more.csv", header=["image", "label"])
    with table.open("a") as stream:
        stream.write("train/gone.webp,hat\n")

    sources = open_splits(config(table)).values()

    (name, reason) = next(item for source in sources for item in source.skipped)
    assert name == "train/gone.webp"
    assert "No such file" in reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b\nx.png,1\n", "no column 'image'"),
        ("image,label\n", "lists no images"),
        ("image,label,split\nx.png,a,train\ny.png,b,tran\n", "line 3: split 'tran'"),
        ("image,label,split\nx.png,a,train\ny.png,b,\n", "line 3: split ''"),
        ("image,label,split\nx.png,a,val\n", "no line is of split 'train'"),
        ("\x00\xff", "cannot be read as CSV"),
    ],
)
def test_what_is_wrong_with_a_table_is_reported_by_line(
    tmp_path: Path, text: str, expected: str
) -> None:
    table = tmp_path / "labels.csv"
    table.write_bytes(text.encode("latin-1"))

    with pytest.raises(DataError, match=expected):
        open_splits(config(table))


def test_images_without_labels_need_no_column_for_them(photos: Path) -> None:
    table = photos / "plain.csv"
    names = [str(file.relative_to(photos)) for file in (photos / "train").rglob("*.webp")]
    table.write_text("\n".join(["image", *names]))

    splits = open_splits(config(table))

    assert sum(len(source) for source in splits.values()) == 48
    assert not splits["train"].labeled


HEADERS = [
    "image, label",
    "image;label",
    "image\tlabel",
    "Label,IMAGE",
    "\ufeffimage,label",
    " image | class ",
]


@pytest.mark.parametrize("header", HEADERS, ids=ascii)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_table_is_read_as_spreadsheets_write_it(
    photos: Path, tmp_path: Path, header: str, encoding: str
) -> None:
    separator = next(c for c in ";\t|," if c in header)
    image_first = "image" in header.lower().split(separator)[0]
    lines = [header]
    for i, file in enumerate(sorted((photos / "train").rglob("*.webp"))):
        cells = [str(file.relative_to(photos)).replace("/", "\\"), file.parent.name + " " * (i % 2)]
        lines.append(f"{separator} ".join(cells if image_first else cells[::-1]))
    table = photos / "sheet.csv"
    table.write_bytes("\r\n".join([*lines, ""]).encode(encoding))

    splits = open_splits(config(table))

    assert sum(len(source) for source in splits.values()) == 48
    assert splits["train"].classes == sorted(f.name for f in (photos / "train").iterdir())
    assert splits["train"].labeled


def test_a_line_with_more_cells_than_the_header_is_an_error(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("image,label\na,b.png,cat\n")

    with pytest.raises(DataError, match="line 2: has 3 cells, its header 2"):
        open_splits(config(table))


@pytest.mark.parametrize("special", ["/dev/zero", "pipe.png"])
def test_devices_and_pipes_in_a_table_are_no_images(
    photos: Path, tmp_path: Path, special: str
) -> None:
    special = str(tmp_path / special)  # joining keeps the absolute /dev/zero
    if not Path(special).exists():
        os.mkfifo(special)
    table = write_table(photos, photos / "more.csv", header=["image", "label"])
    with table.open("a") as stream:
        stream.write(f"{special},hat\n")

    sources = open_splits(config(table)).values()

    (name, reason) = next(item for source in sources for item in source.skipped)
    assert name == special
    assert "no image" in reason


def table_of(tmp_path: Path, header: str, lines: list[str]) -> DataConfig:
    """A table of images a.png, b.png, ... with these further cells."""
    rows = [header]
    for i, line in enumerate(lines):
        name = f"{chr(ord('a') + i)}.png"
        save_image(tmp_path / name, np.full((8, 8, 3), 40 * i, np.uint8))
        rows.append(f"{name},{line}")
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(rows), encoding="utf-8")
    return DataConfig(path=table, image_size=8, holdout=0)


@pytest.mark.parametrize(
    ("header", "lines", "labels"),
    [
        ("image,Cat,dog,no", ["1,0,0", "0,1,0", "0,0,1", "1,,"], ["Cat", "dog", "no", "Cat"]),
        ("file,cat,width,dog", ["1,640,0", "0,480,1"], ["cat", "dog"]),
        ("filename,cat,dog", ["1.0,0.0", "False,TRUE"], ["cat", "dog"]),
        ("image,labels", ["cat", "dog", "cat"], ["cat", "dog", "cat"]),
        ("image,label", ["fruit|apple", "fruit|pear"], ["fruit|apple", "fruit|pear"]),
        ("image,label", ["a b", "b", "a"], ["a b", "b", "a"]),
        ("image,label", ['"Smith, J"', '"Smith, K"'], ["Smith, J", "Smith, K"]),
        ("image,label,seen,used", ["yes,1,0", "no,1,1"], ["yes", "no"]),
    ],
)
def test_one_label_per_image_is_read_however_it_is_written(
    tmp_path: Path, header: str, lines: list[str], labels: list[str]
) -> None:
    source = open_splits(table_of(tmp_path, header, lines))["train"]

    assert [source.classes[i] for i in source.labels.tolist()] == labels
    assert why_unlabeled(source) == ""


@pytest.mark.parametrize(
    ("header", "lines", "labels", "remark"),
    [
        ("image,cat,dog", ["1,0", "1,1", ","], ["cat", "cat dog", ""], "line 3: 'cat', 'dog' hold"),
        ("image,cat,dog,cow", ["1,1,0"], ["cat dog"], "no line holds 1 in 'cow'"),
        ("image,label", ["dog", "cat;dog", ""], ["dog", "cat dog", ""], "by ';' (line 3: 'cat;dog"),
        ("image,label", ["cat|dog", "dog|ape|"], ["cat dog", "ape dog"], "by '|' (line 2: 'cat|d"),
        ("image,labels", ['"cat, dog"', "dog"], ["cat dog", "dog"], "by ',' (line 2: 'cat, dog'"),
        ("image,tags", ["cat dog", "dog cat"], ["cat dog", "cat dog"], "by spaces (line 2: 'cat d"),
        ("image,label", ["cat;\u200b", "cat"], ["cat", "cat"], "by ';'"),
    ],
)
def test_several_labels_per_image_are_read_and_combinations_never_become_classes(
    tmp_path: Path, header: str, lines: list[str], labels: list[str], remark: str
) -> None:
    config = table_of(tmp_path, header, lines)

    source = open_splits(config)["train"]

    classes = np.array(source.classes)
    assert [" ".join(classes[row.numpy() > 0]) for row in source.labels] == labels
    assert why_unlabeled(source) == ""
    assert not source.one_class, "k-NN takes one class per image"
    assert any(remark in line for line in source.remarks)
    found = survey(config)
    assert found.tasks == ["multilabel"]
    counts = {name: sum(name in line.split() for line in labels) for name in source.classes}
    assert found.splits["train"].objects == counts
    assert found.splits["train"].empty == labels.count("")


def test_a_line_without_a_1_is_no_evidence_of_several_labels(tmp_path: Path) -> None:
    source = open_splits(table_of(tmp_path, "image,cat,dog", ["1,0", "0,0", "0,1"]))["train"]

    assert source.labels.tolist() == [0, -1, 1]
    assert "1 of 3 images, such as b.png" in why_unlabeled(source)


def test_classes_of_the_test_split_that_are_never_learned_are_reported(tmp_path: Path) -> None:
    lines = ["train,1,1,0", "train,0,1,0", "test,1,0,1", "test,0,1,1"]
    splits = open_splits(table_of(tmp_path, "image,split,cat,dog,cow", lines))

    assert "2 of 2 images are of classes without a training image ('cow')" in unlearned_classes(
        splits["train"], splits["test"]
    )
    assert not unlearned_classes(splits["test"], splits["test"])


def test_images_of_train_that_are_held_out_too_are_counted_in_a_warning(tmp_path: Path) -> None:
    config = table_of(tmp_path, "image,label,split", ["x,train", "y,train", "y,test"])
    with config.path.open("a") as table:
        table.write("\n./b.png,y,val")

    for remarks in (open_splits(config)["train"].remarks, survey(config).remarks):
        (line,) = (line for line in remarks if "shares" in line)
        assert "shares 1 image with held-out splits, such as b.png" in line


@pytest.mark.parametrize("corrected", ["y", "x;y"])
def test_a_corrected_label_changes_the_fingerprint_of_kept_images(
    tmp_path: Path, corrected: str
) -> None:
    before, same, after = (
        open_splits(table_of(tmp_path, "image,label", ["x", second, "y"]))["train"].fingerprint
        for second in ("x", "x", corrected)
    )

    assert before == same != after


def test_a_split_whose_images_all_lack_labels_is_not_scored(tmp_path: Path) -> None:
    lines = ["train,a;b", "train,b", "val,a", "test,"]
    splits = open_splits(table_of(tmp_path, "image,split,label", lines))

    assert held_out_split(splits, labeled=True) == "val"
    assert why_unlabeled(splits["test"]) == "none of 1 images has a label"


def test_a_hint_speaks_of_the_table_that_lacks_labels(photos: Path) -> None:
    assert "a column 'label'" in how_to_label(config(photos / "a.csv"))
    assert "one subfolder per class" in how_to_label(config(photos))
