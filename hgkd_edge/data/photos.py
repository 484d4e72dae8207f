"""Photos that are named but not yet read, wherever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np

__all__ = ["IMAGE_SUFFIXES", "SPLITS", "UNLABELLED", "Listing", "Photos", "held_out", "hold_out"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
SPLITS = ("train", "val", "test")
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


def hold_out(photos: Photos, share: float) -> dict[str, Photos]:
    """Keep a fixed share from training: by hash of the name, so new photos never move old ones."""
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
