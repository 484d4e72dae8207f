"""Images that are listed but not yet read, from any source."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from hgkd_edge.cells import counted
from hgkd_edge.data.names import readable

__all__ = [
    "IMAGE_SUFFIXES",
    "UNLABELED",
    "Found",
    "Listing",
    "Photos",
    "find_images",
    "is_image",
    "outside",
    "why_not_an_image",
]

# File suffixes that are tried, matching `images.FORMATS`; the content decides.
IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".mpo", ".png", ".apng", ".webp"),
        *(".bmp", ".dib", ".tif", ".tiff", ".gif", ".avif", ".avifs"),
        *(".ppm", ".pgm", ".pbm", ".pnm"),
    )
)
# Suffixes of unsupported image formats: such files are reported, never silently ignored.
OTHER_IMAGE_SUFFIXES = frozenset(
    (
        *(".heic", ".heif", ".hif", ".jp2", ".j2k", ".j2c", ".jpf", ".jpx", ".jxl", ".jxr", ".svg"),
        *(".psd", ".xcf", ".eps", ".tga", ".ico", ".pcx", ".exr", ".hdr", ".dcm", ".dicom"),
        *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".pef", ".srw"),
    )
)
UNLABELED = -1
T = TypeVar("T")


@dataclass(frozen=True)
class Photos:
    """Images of one split, stored as columns instead of objects to stay small with millions.

    Attributes:
        names: One per image, unique within the source.
        labels: int64 [n], -1 where unlabeled; or, where images may have several labels or none,
            int8 [n, classes] of 0 and 1.
        read: Returns the bytes of image file i.
        size: Returns the size of image file i in bytes, without reading it (-1: unknown).
        version: Version of the whole collection, if it has one, to detect changes that keep sizes.
    """

    names: Sequence[str]
    labels: np.ndarray
    read: Callable[[int], bytes]
    size: Callable[[int], int]
    version: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def select(self, indices: Sequence[int]) -> Photos:
        """The images at `indices`, in that order."""
        return Photos(
            names=[self.names[i] for i in indices],
            labels=self.labels[np.asarray(indices, np.int64)],
            read=partial(_at, self.read, indices),
            size=partial(_at, self.size, indices),
            version=self.version,
        )


@dataclass(frozen=True)
class Listing:
    """The contents of a source.

    Attributes:
        splits: Split name -> its images.
        classes: Class names; empty: unlabeled.
        unused: Image files that are not used, with the reason.
        remarks: Remarks on names, one line each.
    """

    splits: dict[str, Photos]
    classes: list[str]
    unused: Sequence[tuple[str, str]] = ()
    remarks: Sequence[str] = ()

    @property
    def multi_hot(self) -> bool:
        """Whether an image may have several labels or none."""
        return any(photos.labels.ndim == 2 for photos in self.splits.values())


class Found(NamedTuple):
    """Image files below a folder, as relative paths, in path order.

    Attributes:
        names: Files that can be read.
        unused: Files in unsupported formats, with the reason.
        unlisted: Folders that cannot be listed, or are hidden and hold images, with the reason.
    """

    names: list[str]
    unused: list[tuple[str, str]]
    unlisted: list[tuple[str, str]]

    def remark(self, root: Path) -> str:
        """One line about what is not used; '' if everything is."""
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

    Links to folders are followed. Hidden entries are skipped: other programs' folders and the `._*`
    files of macOS are not images. A hidden folder that holds images is reported.
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
            if (about.st_dev, about.st_ino) in seen:  # a link to a parent folder
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
    except OSError:  # a link to itself: tried as a file, and reported when read
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
    """Why a file that looks like an image is not read; '' for all other files."""
    base = os.path.basename(name)
    suffix = os.path.splitext(base)[1].lower()
    if suffix not in OTHER_IMAGE_SUFFIXES or base.startswith("."):
        return ""
    return f"{suffix} files cannot be read"


def outside(root: Path, files: Iterable[Path]) -> str:
    """A remark about files that a list or annotations name outside of their folder; '' if none.

    Such a data set may come from someone else and name private images of its user.
    """
    inside = os.path.join(os.path.abspath(root), "")
    away = [file for file in files if not os.path.abspath(file).startswith(inside)]
    if not away:
        return ""
    first = readable(str(away[0]))
    return f"warning: {counted(len(away), 'image')} outside {root}, such as {first}"


def _at(column: Callable[[int], T], indices: Sequence[int], i: int) -> T:
    return column(indices[i])
