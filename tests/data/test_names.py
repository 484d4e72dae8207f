from __future__ import annotations

import os
import shutil
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hgkd_edge.data.find_images import find_images
from hgkd_edge.data.layout import read_layout
from hgkd_edge.data.names import (
    ByName,
    FileFinder,
    clean,
    name_classes,
    readable,
    split_in,
    split_named,
)
from hgkd_edge.data.sources import ImageSource, open_splits
from hgkd_edge.errors import DataError
from tests.data.helpers import data_config

COMPOSED = "café"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)
NOT_UTF8 = os.fsdecode(b"caf\xe9")


def image(file: Path, shade: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(file, "PNG")
    return file


def tree(root: Path, *folders: str, images: int = 2) -> Path:
    """A tree with some images in each of its folders."""
    for folder in folders:
        for i in range(images):
            image(root / folder / f"{i}.png", 10 * i)
    return root


def opened(root: Path, **more: object) -> dict[str, ImageSource]:
    return open_splits(data_config(root, **{"holdout": 0, **more}))


def remarks(splits: dict[str, ImageSource]) -> str:
    return "\n".join(splits["train"].remarks)


@pytest.mark.parametrize(
    ("spellings", "split"),
    [
        (("train", "Train", "TRAIN", "training", "Training_set", "train2017", "trainset"), "train"),
        (("val", "Valid", "validation", "dev", "Eval", "evaluation", "val-images"), "val"),
        (("test", "Testing", "TEST", "test set", "TestSet", "images_test "), "test"),
        (
            ("tester", "contest", "latest", "trains", "test 2", "val1", "trainval", "blank", ""),
            None,
        ),
    ],
)
def test_every_spelling_of_a_split_means_it(spellings: tuple[str, ...], split: str | None) -> None:
    assert {spelling: split_named(spelling) for spelling in spellings} == dict.fromkeys(
        spellings, split
    )


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("instances_val2017", "val"),
        ("cam0-training-000", "train"),
        ("annotations_Test", "test"),
        ("latest", None),
        ("interval_7", None),
    ],
)
def test_a_file_name_speaks_of_a_split_by_a_whole_word(name: str, split: str | None) -> None:
    assert split_in(name) == split


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "Validation"), ("TRAIN", "dev")])
def test_splits_of_folders_are_found_by_any_spelling(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    root = tree(tmp_path, *(f"{name}/{label}" for name in names for label in ("cat", "dog")))

    splits = opened(root)

    assert splits.keys() == {"train", split_named(names[1])}
    assert all(source.classes == ["cat", "dog"] for source in splits.values())
    assert remarks(splits) == ""


def test_images_outside_the_splits_are_counted(tmp_path: Path) -> None:
    root = tree(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog", "extra")

    splits = opened(root)

    assert sum(map(len, splits.values())) == 8
    assert "2 images of" in remarks(splits)
    assert "such as extra/0.png" in remarks(splits)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["train", "car", "bus"], "'train' can be the training split or a class next to"),
        (["cat", "dog", "test/cat", "test/dog"], "'test' looks like a split next to"),
        (["Val/cat", "Test/cat"], "has no training split, only 'Test', 'Val'"),
        (["cat/train", "cat/test", "dog/train"], "folders in 'cat' look like splits"),
        (["data/Train/cat", "data/Test/cat"], "set data.path to .*/data"),
        (["train/cat", "training/dog"], "both 'train' and 'training' stand for split 'train'"),
    ],
)
def test_folders_that_are_splits_or_classes_are_not_guessed(
    tmp_path: Path, folders: list[str], expected: str
) -> None:
    with pytest.raises(DataError, match=expected):
        opened(tree(tmp_path, *folders))


def test_a_class_named_like_a_split_is_used_and_reported(tmp_path: Path) -> None:
    splits = opened(tree(tmp_path, "control", "test"))

    assert splits["train"].classes == ["control", "test"]
    assert "'test' looks like a split and is used as a class" in remarks(splits)


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".dib", ".ppm", ".apng"])
def test_every_suffix_of_a_readable_format_is_read(tmp_path: Path, suffix: str) -> None:
    image(tmp_path / f"a{suffix}")

    assert len(opened(tmp_path)["train"]) == 1


def test_images_of_formats_that_cannot_be_read_are_counted_and_recorded(tmp_path: Path) -> None:
    tree(tmp_path, "cat", "dog")
    for name in ("cat/a.heic", "cat/b.HEIC", "dog/c.jp2"):
        (tmp_path / name).write_bytes(b"x")

    splits = opened(tmp_path)

    assert "3 image files in" in remarks(splits)
    assert "2 .heic, 1 .jp2, such as cat/a.heic" in remarks(splits)
    assert ("cat/a.heic", ".heic files cannot be read") in splits["train"].skipped


def test_a_folder_of_unreadable_formats_says_which(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"x")

    with pytest.raises(DataError, match="no image files that can be read.*1 .heic"):
        opened(tmp_path)


def test_a_pipe_named_like_an_image_is_skipped_and_named(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")

    source = opened(tmp_path)["train"]

    assert source.names == ["a.png"]
    assert source.skipped == [("b.png", "is a named pipe, no image")]


def test_class_names_that_look_alike_are_one_class(tmp_path: Path) -> None:
    splits = opened(tree(tmp_path, COMPOSED, DECOMPOSED, "cat", "cat ", "dog"))

    assert splits["train"].classes == [COMPOSED, "cat", "dog"] or splits["train"].classes == [
        "cat",
        COMPOSED,
        "dog",
    ]
    assert sorted(splits["train"].labels.bincount().tolist()) == [2, 4, 4]
    assert remarks(splits).count("taken as one class") == 2


def test_class_names_that_differ_in_case_are_kept_apart_and_reported() -> None:
    classes = name_classes(["Cat", "cat", "dog"])

    assert classes.names == ["Cat", "cat", "dog"]
    assert "classes 'Cat', 'cat' differ only in case" in classes.remarks[0]


@pytest.mark.parametrize("name", ["cat ", " cat", "c\u200bat", "\ufeffcat", "cat\u00a0"], ids=ascii)
def test_what_nobody_sees_in_a_name_does_not_count(name: str) -> None:
    assert clean(name) == "cat"


def test_names_that_are_not_utf8_are_used_and_shown_readably(tmp_path: Path) -> None:
    tree(tmp_path, NOT_UTF8, "dog")
    image(tmp_path / "dog" / f"{NOT_UTF8}.png")

    for decode in ("once", "streaming"):
        splits = opened(tmp_path, holdout=0.3, decode=decode)
        names = [name for source in splits.values() for name in source.names]

        assert splits["train"].classes == [r"caf\xe9", "dog"]
        assert r"dog/caf\xe9.png" in names
        "".join(names).encode()
        assert not any(source.skipped for source in splits.values())
    assert readable(COMPOSED) == COMPOSED


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        (DECOMPOSED + ".png", COMPOSED + ".png"),
        (COMPOSED + ".png", DECOMPOSED + ".png"),
        ("A.PNG", "a.png"),
        ("sub/a.png", "Sub\\a.png"),
        ("a.png", " a.png "),
        ("a .png", "a .png"),
    ],
    ids=ascii,
)
def test_a_file_is_found_by_other_spellings_of_its_name(
    tmp_path: Path, stored: str, asked: str
) -> None:
    image(tmp_path / stored)

    assert FileFinder(tmp_path).find(asked) == tmp_path / stored


def test_a_name_that_several_files_could_mean_finds_none(tmp_path: Path) -> None:
    for name in ("A.png", "a.png"):
        image(tmp_path / name)

    assert FileFinder(tmp_path).find("a.PNG") is None
    assert FileFinder(tmp_path).find("a.png") == tmp_path / "a.png"
    assert ByName([("A", 1), ("a", 2)]).find("a") == [2]


def test_label_sets_that_differ_between_splits_are_reported_with_counts(tmp_path: Path) -> None:
    root = tree(tmp_path, "train/cat", "train/dog", "val/cat", "val/owl")
    shutil.copytree(root / "train" / "cat", root / "test")

    expected = remarks(opened(root))

    assert "split 'val': 2 of 4 images are of classes without a training image ('owl')" in expected
    assert "classes without an image in split 'val': 'dog'" in expected
    assert "2 of 2 images of split 'test' have no label" in expected


def test_images_are_listed_in_the_order_of_their_paths(tmp_path: Path) -> None:
    tree(tmp_path, "b", "a b", "a")

    names = find_images(tmp_path).names

    assert names == ["a/0.png", "a/1.png", "a b/0.png", "a b/1.png", "b/0.png", "b/1.png"]


def test_a_tree_deeper_than_pythons_stack_is_listed(tmp_path: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(tmp_path)
    for _ in range(1200):
        os.mkdir("d")
        os.chdir("d")
    image(Path("a.png"))
    os.fchdir(here)

    found = find_images(tmp_path)

    assert len(found.names) == 1
    subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)  # shutil cannot remove it


def test_a_folder_that_cannot_be_listed_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path, "cat", "dog", "secret")
    scan = os.scandir

    def guarded(folder: str) -> object:
        if str(folder).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", guarded)

    splits = opened(tmp_path)

    assert "1 folders in" in remarks(splits)
    assert ("secret", "cannot be listed: Permission denied") in splits["train"].skipped


def test_a_hidden_folder_of_images_is_reported_and_one_of_other_programs_is_not(
    tmp_path: Path,
) -> None:
    tree(tmp_path, "cat", "dog", ".net")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").touch()

    splits = opened(tmp_path)

    assert splits["train"].classes == ["cat", "dog"]
    assert "1 folders in" in remarks(splits)
    assert (".net", "its name begins with a dot; rename it") in splits["train"].skipped


@pytest.mark.parametrize(
    ("training", "other"),
    [
        ("X_train", "X_test"),
        ("train1", "test1"),
        ("train_v2", "test_v2"),
        ("cats_train", "cats_val"),
    ],
)
def test_folders_that_speak_of_splits_among_other_words_are_no_classes(
    tmp_path: Path, training: str, other: str
) -> None:
    names = [f"{training}/a.jpg", f"{other}/a.jpg"]

    with pytest.raises(DataError, match=f"'{training}', '{other}' look like splits"):
        read_layout(tmp_path, names)
    assert read_layout(tmp_path, [*names, "third/a.jpg"]).tops == {"train": ""}
