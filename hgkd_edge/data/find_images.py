"""Which files below a folder are images: folders are walked, suffixes known."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hgkd_edge.data.names import readable

__all__ = ["IMAGE_SUFFIXES", "Found", "find_images", "is_image", "why_not_an_image"]

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
            for entry in _entries(folder):
                name = f"{inside}/{entry.name}" if inside else entry.name
                if entry.name.startswith("."):
                    if _is_folder(entry) and _holds_images(entry.path):
                        reason = "its name begins with a dot; rename it"
                        unlisted.append((readable(name), reason))
                elif _is_folder(entry):
                    folders.append(name)
                elif is_image(name):
                    found.append(name)
                elif why_not_an_image(name):
                    unused.append(name)
        except OSError as error:
            unlisted.append((readable(inside), f"cannot be listed: {error.strerror}"))
    found.sort(key=lambda name: name.replace("/", "\0"))  # part by part
    return Found(found, [(readable(n), why_not_an_image(n)) for n in sorted(unused)], unlisted)


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """A folder's entries one at a time: an entry takes more memory than its name."""
    with os.scandir(folder) as entries:
        yield from entries


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
