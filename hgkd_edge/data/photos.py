"""Photos that are named but not yet read, wherever they lie."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from hgkd_edge.errors import DataError

__all__ = [
    "IMAGE_SUFFIXES",
    "SPLIT_NAMES",
    "UNLABELLED",
    "Listing",
    "Photos",
    "held_out",
    "image_names",
    "splits_by_name",
    "with_holdout",
]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
# What folders, files and columns call a split -> what it is called here.
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
UNLABELLED = -1
T = TypeVar("T")


@dataclass(frozen=True)
class Photos:
    """Photos of one split: columns, not objects, so that millions of them stay small.

    Attributes:
        names: One per photo, unlike all others of the source.
        labels: int64 [n], -1 where unlabelled.
        read: Bytes of the image file of photo i.
        size: Bytes in that file, found without reading it (-1: unknown).
        version: What `size` cannot tell: the version of the whole collection, where it has one.
    """

    names: Sequence[str]
    labels: np.ndarray
    read: Callable[[int], bytes]
    size: Callable[[int], int]
    version: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def select(self, indices: Sequence[int]) -> Photos:
        """Some of the photos, in the order of `indices`."""
        return Photos(
            names=[self.names[i] for i in indices],
            labels=self.labels[np.asarray(indices, np.int64)],
            read=partial(_at, self.read, indices),
            size=partial(_at, self.size, indices),
            version=self.version,
        )


class Listing(NamedTuple):
    """What a source holds: photos by split, and class names (empty: unlabelled)."""

    splits: dict[str, Photos]
    classes: list[str]


def image_names(root: Path, top: str = "") -> list[str]:
    """Names of image files below `root/top`, relative to `root`, in the order of their paths.

    Folders that are links are followed; what is hidden is left out: other programs' folders, and
    the `._*` files that macOS leaves, are no photos.
    """
    found, seen = [], set()
    for folder, folders, files in os.walk(root / top, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:  # a link back up
            folders.clear()
            continue
        seen.add(place)
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(folder).relative_to(root).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        found += [prefix + name for name in files if _is_image(name)]
    return sorted(found, key=lambda name: name.split("/"))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def splits_by_name(names: Iterable[str], root: Path) -> dict[str, str]:
    """Split -> the one of these names in `root` that stands for it; other names are passed over.

    Raises:
        DataError: Two names stand for one split.
    """
    found: dict[str, str] = {}
    for name in names:
        split = SPLIT_NAMES.get(name)
        if split in found:
            raise DataError(
                f"{root}: both '{found[split]}' and '{name}' stand for split '{split}'",
                hint="keep one of them",
            )
        if split is not None:
            found[split] = name
    return found


def with_holdout(splits: dict[str, Photos], share: float) -> dict[str, Photos]:
    """The same splits; where only `train` holds photos, a fixed share of them is kept from it.

    By hash of the name, so new photos never move old ones.
    """
    if any(len(photos) for split, photos in splits.items() if split != "train"):
        return splits
    photos = splits["train"]
    held = [held_out(name, share) for name in photos.names]
    parts = {
        "train": [i for i, out in enumerate(held) if not out],
        "holdout": [i for i, out in enumerate(held) if out],
    }
    return {split: photos.select(indices) for split, indices in parts.items() if indices}


def held_out(name: str, share: float) -> bool:
    """Whether a photo belongs to the share that is kept from training."""
    draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return draw < share


def _at(column: Callable[[int], T], indices: Sequence[int], i: int) -> T:
    return column(indices[i])
