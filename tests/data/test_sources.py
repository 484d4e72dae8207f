from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hgkd_edge.data.annotations import open_boxes, open_masks
from hgkd_edge.data.color import to_rgb
from hgkd_edge.data.decode import allocate
from hgkd_edge.data.find_images import find_images
from hgkd_edge.data.resize import cover
from hgkd_edge.data.sources import held_out_split, open_splits, why_unlabeled
from hgkd_edge.errors import DataError
from hgkd_edge.recipe_sections import DataConfig


def folder(path: Path, **more: object) -> DataConfig:
    return DataConfig.model_validate({"path": path, "image_size": 32, **more})


def test_the_bundled_images_are_labeled_and_split() -> None:
    splits = open_splits(DataConfig(source="bundled", image_size=64))

    assert {name: len(source) for name, source in splits.items()} == {"train": 1628, "test": 372}
    assert len(splits["train"].classes) == 10
    assert all(source.labeled and not source.skipped for source in splits.values())
    assert not set(splits["train"].names) & set(splits["test"].names)


def test_a_folder_with_splits_keeps_them(photos: Path) -> None:
    splits = open_splits(folder(photos))

    assert {name: len(source) for name, source in splits.items()} == {"train": 48, "test": 18}
    assert splits["train"].labels.bincount().tolist() == [16, 16, 16]
    assert splits["train"].images.shape == (48, 3, 37, 37)


def test_a_plain_tree_holds_out_the_same_images_whatever_else_is_added(
    photos: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(photos / "train", tree)
    before = set(open_splits(folder(tree, holdout=0.2))["holdout"].names)
    shutil.copytree(photos / "test", tree, dirs_exist_ok=True)

    after = open_splits(folder(tree, holdout=0.2))["holdout"].names

    assert before
    assert before <= set(after)


def labeled_tree(photos: Path, to: Path) -> Path:
    """The fixture's folder without its `test/`."""
    shutil.copytree(photos / "train", to / "train")
    return to


def test_a_folder_with_only_train_holds_a_share_out(photos: Path, tmp_path: Path) -> None:
    tree = labeled_tree(photos, tmp_path)
    (tree / "val").mkdir()

    parted, whole = open_splits(folder(tree, holdout=0.2)), open_splits(folder(tree, holdout=0))

    assert parted.keys() == {"train", "holdout"}
    assert 3 <= len(parted["holdout"]) <= 18
    both = parted["train"].names + parted["holdout"].names
    assert sorted(both) == sorted(open_splits(folder(photos))["train"].names)
    assert len(whole["train"]) == 48


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_every_name_of_the_validation_folder_means_it(
    photos: Path, tmp_path: Path, name: str
) -> None:
    tree = labeled_tree(photos, tmp_path)
    shutil.copytree(photos / "test", tree / name)

    splits = open_splits(folder(tree))

    assert {split: len(source) for split, source in splits.items()} == {"train": 48, "val": 18}
    assert splits["val"].names[0].startswith(f"{name}/")
    assert splits["val"].labels.bincount().tolist() == [6, 6, 6]


def test_two_folders_of_one_split_are_an_error(photos: Path, tmp_path: Path) -> None:
    tree = labeled_tree(photos, tmp_path)
    for name in ("val", "valid"):
        shutil.copytree(photos / "test", tree / name)

    with pytest.raises(DataError, match="both 'val' and 'valid' stand for split 'val'"):
        open_splits(folder(tree))


def test_a_split_without_labels_is_not_offered_to_be_scored(photos: Path, tmp_path: Path) -> None:
    tree = labeled_tree(photos, tmp_path)
    (tree / "test").mkdir()
    for i, file in enumerate(photos.glob("test/*/*.webp")):
        shutil.copy(file, tree / "test" / f"{i}.webp")
    flat = open_splits(folder(tree))
    shutil.copytree(photos / "test", tree / "val")
    also_labeled = open_splits(folder(tree))

    assert held_out_split(flat) == "test"
    assert held_out_split(flat, labeled=True) is None
    assert held_out_split(also_labeled, labeled=True) == "val"
    assert "18 of 18 images, such as test/0.webp" in why_unlabeled(flat["test"])


def test_boxes_and_label_maps_are_labels() -> None:
    samples = Path(__file__).parent.parent / "samples"
    splits = [
        open_boxes(DataConfig(path=samples / "bccd", image_size=32)),
        open_masks(DataConfig(path=samples / "nuclei", image_size=32), binary=True),
    ]

    assert all(held_out_split(one, labeled=True) == "val" for one in splits)


def test_what_keeps_images_from_being_labeled_is_named(photos: Path, tmp_path: Path) -> None:
    tree = labeled_tree(photos, tmp_path / "stray")
    shutil.copy(next(photos.glob("test/*/*.webp")), tree / "train" / "cover.webp")
    one = tmp_path / "one"
    shutil.copytree(next((photos / "train").iterdir()), one / "only")

    def reason(path: Path) -> str:
        return why_unlabeled(open_splits(folder(path, holdout=0))["train"])

    assert reason(tree).endswith("1 of 49 images, such as train/cover.webp")
    assert reason(one) == "every image is of one class, or of none"
    assert reason(photos) == ""


def test_images_without_subfolders_are_unlabeled(photos: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, file in enumerate(sorted(photos.glob("train/*/*.webp"))):
        shutil.copy(file, flat / f"{i}.webp")

    source = open_splits(folder(flat, holdout=0))["train"]

    assert len(source) == 48
    assert not source.labeled
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


def test_an_image_is_turned_upright_by_its_exif(tmp_path: Path) -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:20] = 255  # white above black, stored turned by 180 degrees
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 3
    image.save(tmp_path / "turned.png", exif=exif)

    upright = open_splits(folder(tmp_path, holdout=0))["train"].images[0]  # [3, H, W]

    assert upright[:, 2].float().mean() < 5
    assert upright[:, -3].float().mean() > 250


def test_gray_palette_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "CMYK", "I;16"):
        Image.new(mode, (50, 30)).save(tmp_path / f"{mode.replace(';', '')}.tiff")

    source = open_splits(folder(tmp_path, holdout=0))["train"]

    assert source.images.shape == (5, 3, 37, 37)


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((30, 50), 128 * 257, np.uint16),
        np.full((30, 50), 128 * 257, np.int32),
        np.full((30, 50), 128 / 255, np.float32),
    ],
    ids=lambda pixels: str(pixels.dtype),
)
def test_images_of_16_bits_and_of_floats_keep_their_shades(
    tmp_path: Path, pixels: np.ndarray
) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.tiff")

    source = open_splits(folder(tmp_path, holdout=0))["train"]

    assert source.images.unique().tolist() == [128]


@pytest.mark.parametrize("value", [255.0, -0.5, float("nan"), 70000])
def test_pixels_of_no_known_range_are_reported(value: float) -> None:
    kind = np.int32 if isinstance(value, int) else np.float32
    pixels = np.zeros((3, 3), kind)
    pixels[1, 1] = value

    with pytest.raises(ValueError, match="pixels from .* to .*: can be 0 to"):
        to_rgb(Image.fromarray(pixels))


def test_the_fingerprint_follows_the_bytes(photos: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(photos, tree)
    before = open_splits(folder(tree))["train"].fingerprint
    files = sorted((tree / "train").glob("*/*.webp"))
    files[0].write_bytes(files[1].read_bytes())

    assert open_splits(folder(tree))["train"].fingerprint != before


@pytest.mark.parametrize("canvas", [(73, 73), (256, 256), (73, 110)])
def test_no_image_is_lost_to_rounding_whatever_its_shape(canvas: tuple[int, int]) -> None:
    """Rounding can put a crop box slightly outside the image, which PIL rejects."""
    for height in range(20, 1000, 7):
        photo = Image.new("RGB", (640, height))
        assert cover(photo, canvas).size == canvas[::-1]


def test_hidden_files_are_no_images_and_linked_folders_are_followed(
    photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "linked").symlink_to(photos / "train")
    (tmp_path / "linked again").symlink_to(tmp_path)  # a cycle
    hidden = tmp_path / ".ipynb_checkpoints"
    hidden.mkdir()
    for file in (hidden / "a.png", tmp_path / "._a.png"):
        file.write_bytes(b"no image")

    names = find_images(tmp_path).names

    assert len(names) == 48
    assert all(name.startswith("linked/") for name in names)


def test_images_are_in_the_order_of_their_folders(tmp_path: Path) -> None:
    names = ["a/b.png", "a/b/c.png", "a b/c.png", "a!.png", "a.png", "a-1/x.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    assert find_images(tmp_path).names == sorted(names, key=lambda name: name.split("/"))


def test_decoded_images_that_no_disk_can_take_are_one_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hgkd_edge.data.decode.memory_bytes", lambda: 0)

    with pytest.raises(DataError, match=r"decoded images take .* GB.*TMPDIR"):
        allocate((10**7, 3, 10**4, 10**3))
