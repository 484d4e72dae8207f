"""Images in a folder, and the images bundled with this package."""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path

import numpy as np

from hgkd_edge.data.find_images import find_images
from hgkd_edge.data.holdout import with_holdout
from hgkd_edge.data.images import read_image_file
from hgkd_edge.data.layout import read_layout
from hgkd_edge.data.names import ClassNames, name_classes, readable
from hgkd_edge.data.photos import UNLABELED, Listing, Photos
from hgkd_edge.errors import DataError
from hgkd_edge.recipe_sections import DataConfig

__all__ = ["bundled_photos", "folder_photos", "read_file", "size_of_file"]

BUNDLED = Path(__file__).parent / "bundled" / "clothing10.zip"


def bundled_photos(config: DataConfig) -> Listing:
    """The images bundled with this package."""
    with zipfile.ZipFile(BUNDLED) as archive:
        # Read upfront: a ZipFile must not be read by several threads at once.
        contents = {name: archive.read(name) for name in sorted(archive.namelist())}
    classes = sorted({name.split("/")[1] for name in contents})
    splits = {}
    for split in ("train", "test"):
        names = [name for name in contents if name.split("/")[0] == split]
        files = [contents[name] for name in names]
        splits[split] = Photos(
            names=names,
            labels=np.array([classes.index(name.split("/")[1]) for name in names], np.int64),
            read=files.__getitem__,
            size=partial(_length, files),
        )
    return Listing(splits, classes)


def folder_photos(config: DataConfig) -> Listing:
    """Images by split: `root/{train,val,test}/...` in any usual spelling, or one tree.

    If only training images exist, a share is held out.

    Raises:
        DataError: The folder is missing or holds no image files, or its subfolders could be either
            splits or classes.
    """
    assert config.path is not None, "checked by DataConfig"
    root = config.path.expanduser()
    if not root.is_dir():
        raise DataError(f"data.path '{root}' is not a folder", hint="name a folder of images")
    found = find_images(root)
    if not found.names:
        unread = found.remark(root).removeprefix("warning: ")
        raise DataError(
            f"data.path '{root}' holds no image files that can be read",
            hint=unread or "set data.path to the folder that holds the images",
        )
    layout = read_layout(root, found.names)
    named = {split: _below(top, found.names) for split, top in layout.tops.items()}
    labels = {s: [_class_of(name, layout.tops[s]) for name in names] for s, names in named.items()}
    classes = name_classes(label for column in labels.values() for label in column)
    if len(classes.names) < 2:
        classes = ClassNames([], [])  # a single subfolder is not a label
    splits = {
        split: Photos(
            names=[readable(name) for name in names],
            labels=np.array(classes.numbers(labels[split], unknown=UNLABELED), np.int64),
            read=partial(read_file, root, names),
            size=partial(size_of_file, root, names),
        )
        for split, names in named.items()
    }
    remarks = [line for line in (found.remark(root), *layout.remarks, *classes.remarks) if line]
    return Listing(
        with_holdout(splits, config.holdout),
        classes.names,
        [*found.unused, *found.unlisted],
        remarks,
    )


def _below(top: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(f"{top}/")] if top else names


def _class_of(name: str, top: str) -> str:
    """The first subfolder below the split's folder; '' for a file directly in that folder."""
    parts = name.split("/")[1 if top else 0 :]
    return parts[0] if len(parts) > 1 else ""


def read_file(root: Path, names: list[str], i: int) -> bytes:
    """Bytes of file i."""
    return read_image_file(root / names[i])


def size_of_file(root: Path, names: list[str], i: int) -> int:
    """Size of file i in bytes, -1 if unknown."""
    try:
        return (root / names[i]).stat().st_size
    except OSError:  # a broken link: reported when it is read
        return -1


def _length(files: list[bytes], i: int) -> int:
    return len(files[i])
