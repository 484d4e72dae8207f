from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hgkd_edge.data.geometry import cover
from hgkd_edge.data.sources import open_splits
from hgkd_edge.errors import DataError
from hgkd_edge.recipe import DataConfig


def folder(path: Path, **more: object) -> DataConfig:
    return DataConfig.model_validate({"path": path, "image_size": 32, **more})


def test_the_bundled_photos_are_labelled_and_split() -> None:
    splits = open_splits(DataConfig(source="bundled", image_size=64))

    assert {name: len(source) for name, source in splits.items()} == {"train": 1628, "test": 372}
    assert len(splits["train"].classes) == 10
    assert all(source.labelled and not source.skipped for source in splits.values())
    assert not set(splits["train"].names) & set(splits["test"].names)


def test_a_folder_with_splits_keeps_them(photos: Path) -> None:
    splits = open_splits(folder(photos))

    assert {name: len(source) for name, source in splits.items()} == {"train": 48, "test": 18}
    assert splits["train"].labels.bincount().tolist() == [16, 16, 16]
    assert splits["train"].images.shape == (48, 3, 37, 37)


def test_a_plain_tree_holds_out_the_same_photos_whatever_else_is_added(
    photos: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(photos / "train", tree)
    before = set(open_splits(folder(tree, holdout=0.2))["holdout"].names)
    shutil.copytree(photos / "test", tree, dirs_exist_ok=True)

    after = open_splits(folder(tree, holdout=0.2))["holdout"].names

    assert before
    assert before <= set(after)


def test_photos_without_subfolders_are_unlabelled(photos: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, file in enumerate(sorted(photos.glob("train/*/*.webp"))):
        shutil.copy(file, flat / f"{i}.webp")

    source = open_splits(folder(flat, holdout=0))["train"]

    assert len(source) == 48
    assert not source.labelled
    assert (source.labels == -1).all()


def test_unreadable_files_are_skipped_and_listed_and_the_rest_stays_itself(
    photos: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(photos, tree)
    label = next((tree / "train").iterdir())
    whole = next(label.glob("*.webp"))
    (label / "a-truncated.webp").write_bytes(whole.read_bytes()[:200])
    (label / "b-text.jpg").write_text("not an image")
    (label / "c-empty.png").touch()
    (label / "notes.txt").write_text("no image by its name: not looked at")

    source = open_splits(folder(tree))["train"]
    clean = open_splits(folder(photos))["train"]

    assert [Path(name).name for name, _ in source.skipped] == [
        "a-truncated.webp",
        "b-text.jpg",
        "c-empty.png",
    ]
    assert all(reason for _, reason in source.skipped)
    assert source.names == clean.names
    assert torch.equal(source.images, clean.images)
    assert source.fingerprint == clean.fingerprint


def test_only_unreadable_files_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("not an image")

    with pytest.raises(DataError, match="none of 1 image files can be read"):
        open_splits(folder(tmp_path, holdout=0))


@pytest.mark.parametrize("make", [False, True], ids=["missing", "empty"])
def test_a_folder_without_images_is_an_error_that_names_it(tmp_path: Path, make: bool) -> None:
    place = tmp_path / "nowhere"
    if make:
        place.mkdir()

    with pytest.raises(DataError, match="nowhere"):
        open_splits(folder(place))


def test_a_photo_is_turned_upright_by_its_exif(tmp_path: Path) -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:20] = 255  # white above black, stored turned by 180 degrees
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 3
    image.save(tmp_path / "turned.png", exif=exif)

    upright = open_splits(folder(tmp_path, holdout=0))["train"].images[0]  # [3, H, W]

    assert upright[:, 2].float().mean() < 5
    assert upright[:, -3].float().mean() > 250


def test_grey_palette_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "CMYK", "I;16"):
        Image.new(mode, (50, 30)).save(tmp_path / f"{mode.replace(';', '')}.tiff")

    source = open_splits(folder(tmp_path, holdout=0))["train"]

    assert source.images.shape == (5, 3, 37, 37)


def test_the_fingerprint_follows_the_bytes(photos: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(photos, tree)
    before = open_splits(folder(tree))["train"].fingerprint
    files = sorted((tree / "train").glob("*/*.webp"))
    files[0].write_bytes(files[1].read_bytes())

    assert open_splits(folder(tree))["train"].fingerprint != before


@pytest.mark.parametrize("canvas", [(73, 73), (256, 256), (73, 110)])
def test_no_photo_is_lost_to_rounding_whatever_its_shape(canvas: tuple[int, int]) -> None:
    """A crop box may come out a hair outside the photo, which PIL refuses."""
    for height in range(20, 1000, 7):
        photo = Image.new("RGB", (640, height))
        assert cover(photo, canvas).size == canvas[::-1]
