"""Photos that are named but not yet read, wherever they lie."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from hgkd_edge.data.names import readable

__all__ = [
    "IMAGE_SUFFIXES",
    "UNLABELLED",
    "Found",
    "Listing",
    "Photos",
    "find_images",
    "held_out",
    "is_image",
    "why_not_an_image",
    "with_holdout",
]

# Files that are tried, as `images.FORMATS` can be read; the content decides.
IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".mpo", ".png", ".apng", ".webp"),
        *(".bmp", ".dib", ".tif", ".tiff", ".gif", ".avif", ".avifs"),
        *(".ppm", ".pgm", ".pbm", ".pnm"),
    )
)
# Files that hold images and cannot be read: reported, never passed over in silence.
OTHER_IMAGE_SUFFIXES = frozenset(
    (
        *(".heic", ".heif", ".hif", ".jp2", ".j2k", ".j2c", ".jpf", ".jpx", ".jxl", ".jxr", ".svg"),
        *(".psd", ".xcf", ".eps", ".tga", ".ico", ".pcx", ".exr", ".hdr", ".dcm", ".dicom"),
        *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".pef", ".srw"),
    )
)
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


@dataclass(frozen=True)
class Listing:
    """What a source holds.

    Attributes:
        splits: Photos by split.
        classes: Class names; empty: unlabelled.
        unused: Images that are not among the photos, with the reason.
        remarks: What was found about names, one line each.
        several: Why photos are unlabelled although their source holds labels: one line of it has
            several; '' otherwise.
    """

    splits: dict[str, Photos]
    classes: list[str]
    unused: Sequence[tuple[str, str]] = ()
    remarks: Sequence[str] = ()
    several: str = ""


class Found(NamedTuple):
    """Image files below a folder, relative to it, in the order of their paths.

    Attributes:
        names: Those that are read.
        unused: Those whose format cannot be read, with the reason.
        unlisted: Folders that cannot be listed, or are hidden and hold images, with the reason.
    """

    names: list[str]
    unused: list[tuple[str, str]]
    unlisted: list[tuple[str, str]]

    def remark(self, root: Path) -> str:
        """One line about what is not used; '' if there is nothing."""
        parts = []
        if self.unused:
            counts = Counter(os.path.splitext(name)[1].lower() for name, _ in self.unused)
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
            parts.append(
                f"{len(self.unused)} image files in {root} are not used, their format cannot be "
                f"read: {kinds}, such as {self.unused[0][0]} (convert them to JPEG or PNG)"
            )
        if self.unlisted:
            (name, reason), count = self.unlisted[0], len(self.unlisted)
            parts.append(f"{count} folders in {root} are not used: {name or root}: {reason}")
        return f"warning: {'; '.join(parts)}" if parts else ""


def find_images(root: Path) -> Found:
    """Image files below a folder.

    Folders that are links are followed; what is hidden is skipped: other programs' folders, and
    the `._*` files that macOS leaves, are no photos. A hidden folder of images is reported.
    """
    found, unused, unlisted, seen = (
        list[str](),
        list[str](),
        list[tuple[str, str]](),
        set[tuple[int, int]](),
    )
    folders = [""]
    while folders:
        inside = folders.pop()
        folder = os.path.join(root, inside)
        try:
            about = os.stat(folder)
            if (about.st_dev, about.st_ino) in seen:  # a link back up
                continue
            seen.add((about.st_dev, about.st_ino))
            entries = list(os.scandir(folder))
        except OSError as error:
            unlisted.append((readable(inside), f"cannot be listed: {error.strerror}"))
            continue
        for entry in entries:
            name = f"{inside}/{entry.name}" if inside else entry.name
            if entry.name.startswith("."):
                if _is_folder(entry) and _holds_images(entry.path):
                    unlisted.append((readable(name), "its name begins with a dot; rename it"))
                continue
            if _is_folder(entry):
                folders.append(name)
            elif is_image(name):
                found.append(name)
            elif why_not_an_image(name):
                unused.append(name)
    found.sort(key=lambda name: name.split("/"))
    return Found(found, [(readable(n), why_not_an_image(n)) for n in sorted(unused)], unlisted)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: tried as a file, and named when it is read
        return False


def _holds_images(folder: str) -> bool:
    """Whether an image lies directly in a folder."""
    try:
        return any(is_image(name) for name in os.listdir(folder))
    except OSError:
        return False


def is_image(name: str) -> bool:
    """Whether a file of this name is read as an image."""
    base = os.path.basename(name)
    return os.path.splitext(base)[1].lower() in IMAGE_SUFFIXES and not base.startswith(".")


def why_not_an_image(name: str) -> str:
    """Why a file that seems to hold an image is not read; '' for all others."""
    base = os.path.basename(name)
    suffix = os.path.splitext(base)[1].lower()
    if suffix not in OTHER_IMAGE_SUFFIXES or base.startswith("."):
        return ""
    return f"{suffix} files cannot be read"


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
    draw = int.from_bytes(hashlib.sha256(readable(name).encode()).digest()[:8], "big") / 2**64
    return draw < share


def _at(column: Callable[[int], T], indices: Sequence[int], i: int) -> T:
    return column(indices[i])
