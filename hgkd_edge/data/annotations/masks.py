"""Label maps as images: `images/` + `masks/` (or `labels/`, `instances/`), or Pascal VOC's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from hgkd_edge.data.annotations.listing import (
    Annotated,
    Fault,
    Listing,
    class_file,
    images_by_stem,
    split_lists,
)
from hgkd_edge.data.geometry import IGNORED
from hgkd_edge.data.photos import SPLITS

__all__ = ["all_mask_folders", "mask_folders", "read_mask"]

IMAGES, MASKS = ("images", "JPEGImages"), ("masks", "labels", "instances", "SegmentationClass")


def all_mask_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of photos and of their masks: by split in `train/` and others, or '' for `root`."""
    found = {split: _folders(root / split) for split in ("", *SPLITS)}
    return {split: folders for split, folders in found.items() if folders is not None}


def mask_folders(root: Path, holdout: float) -> Listing[Path]:
    """Photos and masks of equal names.

    Splits are `train/images` + `train/masks`, lists of names (`train.txt`, `val.txt`, `test.txt`,
    beside the folders or in VOC's `ImageSets/Segmentation`), or else a held-out share.
    """
    parts = all_mask_folders(root)
    folders = parts.pop("", None)
    listing: Listing[Path] = Listing({}, class_file(root))
    if folders is None:
        for split, own in parts.items():
            _add(listing, split, root, own, _all_names(own[0]))
        return listing
    lists = split_lists(root) or split_lists(root / "ImageSets" / "Segmentation")
    for split, names in lists.items():
        _add(listing, split, root, folders, names)
    if lists:
        return listing
    _add(listing, "train", root, folders, _all_names(folders[0]))
    parted = Listing.of_one(listing.splits["train"], listing.classes, holdout)
    parted.faults = listing.faults
    return parted


def read_mask(file: Path, size: tuple[int, int], *, binary: bool) -> np.ndarray:
    """A label map, uint8 [H, W]; `binary` makes every number but 0 class 1.

    Raises:
        ValueError: It does not hold one class number below 255 per pixel of a photo of `size`.
    """
    with Image.open(file) as image:
        bands, labels = image.getbands(), np.asarray(image)
    if labels.ndim != 2:
        raise ValueError(f"mask has {len(bands)} channels ({''.join(bands)}), not class numbers")
    if labels.shape != size:
        shapes = " x ".join(map(str, labels.shape[::-1])), " x ".join(map(str, size[::-1]))
        raise ValueError(f"mask is {shapes[0]} pixels, its photo {shapes[1]}")
    if binary:
        return (labels > 0).astype(np.uint8)
    if labels.min() < 0 or labels.max() > IGNORED:
        raise ValueError(
            f"mask holds number {labels.max()}; classes end at 254 (segment.binary=true takes all "
            "numbers above 0 as one class)"
        )
    return labels.astype(np.uint8)


def _folders(root: Path) -> tuple[Path, Path] | None:
    images, masks = (
        next((root / name for name in names if images_by_stem(root / name)), None)
        for names in (IMAGES, MASKS)
    )
    return (images, masks) if images and masks else None


def _all_names(images: Path) -> list[tuple[str, str]]:
    return [(stem, str(file)) for stem, file in images_by_stem(images).items()]


def _add(
    listing: Listing[Path],
    split: str,
    root: Path,
    folders: tuple[Path, Path],
    names: list[tuple[str, str]],
) -> None:
    """Add a split's photos; `names` come with file and line."""
    images, masks = map(images_by_stem, folders)
    faults: list[Fault] = []
    photos = []
    for name, where in names:
        if name in images and name in masks:
            file = images[name]
            photos.append(Annotated(file.relative_to(root).as_posix(), file, masks[name]))
        else:
            missing = folders[0] if name not in images else folders[1]
            faults.append((where, f"'{name}' is not in {missing.name}/; left out"))
    listing.splits[split], listing.faults[split] = photos, faults
