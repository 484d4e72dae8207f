"""Label maps as images: `images/` + `masks/` (or `labels/`, `instances/`), or Pascal VOC's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hgkd_edge.data.annotations.listing import (
    Annotated,
    Fault,
    Listing,
    class_file,
    images_by_stem,
    name_in,
    only_one,
    split_folders,
    split_lists,
    unread_images,
)
from hgkd_edge.data.images import open_image
from hgkd_edge.data.names import readable, splits_by_name
from hgkd_edge.data.orientation import turn_of

__all__ = ["all_mask_folders", "mask_folders", "mask_size", "read_mask"]

IMAGES, MASKS = ("images", "JPEGImages"), ("masks", "labels", "instances", "SegmentationClass")


def all_mask_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of images and of their masks: by split in `train/` etc., or '' for `root`."""
    found = {name: _folders(root / name) for name in ("", *split_folders(root))}
    here = {name: folders for name, folders in found.items() if folders is not None}
    names = {split: here[name] for split, name in splits_by_name(here, root).items()}
    return {"": here[""], **names} if "" in here else names


def mask_folders(root: Path, holdout: float) -> Listing[Path]:
    """Images and masks with equal names.

    Splits are `train/images` + `train/masks`, or lists of names (`train.txt`, `val.txt`,
    `test.txt`) next to the folders or in VOC's `ImageSets/Segmentation`. A share is held out if
    only training images are listed, or if there are no splits.
    """
    parts = all_mask_folders(root)
    folders = parts.pop("", None)
    listing: Listing[Path] = Listing({}, class_file(root))
    if folders is None:
        for split, own in parts.items():
            _add(listing, split, root, own, _all_names(own[0]))
        return listing.hold_out(holdout)
    known = images_by_stem(folders[0])
    lists = split_lists(root, known) or split_lists(root / "ImageSets" / "Segmentation", known)
    for split, names in (lists or {"train": _all_names(folders[0])}).items():
        _add(listing, split, root, folders, names)
    return listing.hold_out(holdout)


def mask_size(file: Path) -> tuple[int, int]:
    """Height and width of a label map as viewers show it.

    Raises:
        OSError, ValueError: The file cannot be read.
    """
    with open_image(file) as image:
        return turn_of(image).upright


def read_mask(file: Path) -> np.ndarray:
    """The numbers of a label map, integers [H, W].

    Raises:
        OSError, ValueError: The file does not hold one whole number per pixel.
    """
    with open_image(file) as image:
        if image.format in ("JPEG", "MPO"):
            raise ValueError(f"{file.name}: JPEG blurs class numbers; masks must be lossless: PNG")
        bands, pixels = image.getbands(), np.asarray(turn_of(image).apply(image))
    if pixels.ndim != 2:
        raise ValueError(
            f"mask has {len(bands)} channels ({''.join(bands)}), not one class number per pixel; "
            "turn its colors into numbers (a palette image keeps both)"
        )
    if pixels.dtype.kind == "b":
        return pixels.astype(np.uint8)
    if pixels.dtype.kind == "f" and not np.array_equal(pixels, np.rint(pixels)):
        raise ValueError("mask holds fractions, not class numbers")
    return pixels


def _folders(root: Path) -> tuple[Path, Path] | None:
    images, masks = (
        next((root / name for name in names if images_by_stem(root / name)), None)
        for names in (IMAGES, MASKS)
    )
    return (images, masks) if images and masks else None


def _all_names(images: Path) -> list[tuple[str, str]]:
    return [(stem, readable(str(images / stem))) for stem in images_by_stem(images)]


def _add(
    listing: Listing[Path],
    split: str,
    root: Path,
    folders: tuple[Path, Path],
    names: list[tuple[str, str]],
) -> None:
    """Add a split's images; `names` come with file and line."""
    images, masks = map(images_by_stem, folders)
    faults: list[Fault] = unread_images(folders[0])
    photos = []
    for name, where in names:
        try:
            file = only_one(name, images.find(name), folders[0].name)
            mask = only_one(name, masks.find(name), folders[1].name)
        except FileNotFoundError as error:
            faults.append((where, f"{error}; skipped"))
        else:
            photos.append(Annotated(name_in(root, file), file, mask))
    listing.splits[split], listing.faults[split] = photos, faults
