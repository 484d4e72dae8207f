"""Matches annotation files to images anywhere below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from hgkd_edge.data.annotations.listing import only_one
from hgkd_edge.data.find_images import find_images
from hgkd_edge.data.names import ByName, readable, split_named

__all__ = ["ImagesBelow", "files_below", "split_of"]


class ImagesBelow:
    """The images below a folder, found by the name of an annotation file.

    Args:
        root: The data set's folder.

    Attributes:
        files: All images, in the order of their paths; `known` is the same as a set.
        unused: Image files in unsupported formats, with the reason.
    """

    def __init__(self, root: Path) -> None:
        found = find_images(root)
        self.root = root
        self.files = [root / name for name in found.names]
        self.known = frozenset(self.files)
        self.unused = [(str(root / name), f"{why}; skipped") for name, why in found.unused]
        self.by_stem: ByName[Path] = ByName((file.stem, file) for file in self.files)

    def find(self, annotation: Path) -> Path:
        """The image with an annotation file's name; of several, the one in the nearest folder.

        Raises:
            FileNotFoundError: No image matches, or several are equally near.
        """
        found = self.by_stem.find(annotation.stem)
        own = set(annotation.parent.parts)
        apart = [len(own ^ set(file.parent.parts)) for file in found]
        nearest = [file for file, far in zip(found, apart, strict=True) if far == min(apart)]
        return only_one(readable(annotation.stem), nearest, readable(self.root.name))


def files_below(root: Path, suffix: str) -> Iterator[Path]:
    """Files below a folder that end in `suffix`, in path order; hidden ones are skipped."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(suffix) and not name.startswith("."):
                yield Path(folder, name)


def split_of(file: Path, root: Path) -> str | None:
    """The split that a folder between `root` and a file is named after; the outermost wins."""
    folders = file.parent.relative_to(root).parts if file.is_relative_to(root) else ()
    return next((split for name in folders if (split := split_named(name))), None)
