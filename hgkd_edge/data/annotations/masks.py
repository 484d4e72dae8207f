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
    in_pixels,
    split_lists,
)
from hgkd_edge.data.geometry import IGNORED
from hgkd_edge.data.photos import SPLIT_NAMES, splits_by_name

__all__ = ["all_mask_folders", "mask_folders", "read_mask"]

IMAGES, MASKS = ("images", "JPEGImages"), ("masks", "labels", "instances", "SegmentationClass")


def all_mask_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of photos and of their masks: by split in `train/` and others, or '' for `root`."""
    found = {name: _folders(root / name) for name in ("", *SPLIT_NAMES)}
    here = {name: folders for name, folders in found.items() if folders is not None}
    names = {split: here[name] for split, name in splits_by_name(here, root).items()}
    return {"": here[""], **names} if "" in here else names


def mask_folders(root: Path, holdout: float) -> Listing[Path]:
    """Photos and masks of equal names.

    Splits are `train/images` + `train/masks`, lists of names (`train.txt`, `val.txt`, `test.txt`,
    beside the folders or in VOC's `ImageSets/Segmentation`); where those name training photos
    only, or there are none, a share is held out.
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


def read_mask(file: Path, size: tuple[int, int], *, binary: bool) -> np.ndarray:
    """A label map, uint8 [H, W]; `binary` makes every number but 0 class 1.

    Raises:
        ValueError: It does not hold one class number below 255 per pixel of a photo of `size`.
    """
    with Image.open(file) as image:
        if image.format in ("JPEG", "MPO"):
            raise ValueError(f"{file.name}: JPEG blurs class numbers; masks must be lossless: PNG")
        bands, labels = image.getbands(), np.asarray(image)
    if labels.ndim != 2:
        raise ValueError(
            f"mask has {len(bands)} channels ({''.join(bands)}), not one class number per pixel; "
            "turn its colours into numbers (a palette image keeps both)"
        )
    if labels.shape != size:
        shapes = in_pixels(labels.shape), in_pixels(size)
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
