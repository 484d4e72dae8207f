"""Annotated images that are listed but not yet read, and how a folder states their splits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from hgkd_edge.data.find_images import IMAGE_SUFFIXES, is_image, why_not_an_image
from hgkd_edge.data.holdout import held_out, shared_images
from hgkd_edge.data.names import ByName, clean, readable, split_named, splits_by_name
from hgkd_edge.errors import DataError
from hgkd_edge.parsing import read_text

__all__ = [
    "Annotated",
    "Box",
    "Fault",
    "Listing",
    "checked_boxes",
    "class_file",
    "class_names",
    "files_by_stem",
    "images_by_stem",
    "in_pixels",
    "name_in",
    "only_one",
    "split_folders",
    "split_lists",
    "stated_size",
    "unread_images",
]

A = TypeVar("A")
Fault = tuple[str, str]  # location, and what is wrong


@dataclass(frozen=True)
class Box:
    """One object as given in its annotation file.

    Attributes:
        name: Class name.
        corners: x1, y1, x2, y2 in pixels of the image.
        where: File and line.
        normalized: Corners are fractions of the image's width and height instead of pixels.
    """

    name: str
    corners: tuple[float, ...]
    where: str
    normalized: bool = False

    def in_pixels(self, size: tuple[int, int]) -> tuple[float, ...]:
        """The corners in pixels of an image of this height and width."""
        if not self.normalized:
            return self.corners
        return tuple(n * side for n, side in zip(self.corners, size[::-1] * 2, strict=True))


@dataclass(frozen=True)
class Annotated(Generic[A]):
    """One image and its annotation: its boxes, or the source of its mask.

    `size` is the height and width in pixels that the annotation file states, if any. If EXIF turns
    the image, `turns` states which orientation that size is for.
    """

    name: str
    file: Path
    annotation: A
    size: tuple[int, int] | None = None


@dataclass
class Listing(Generic[A]):
    """Annotated images by split, class names (empty: not known yet), and what was skipped.

    `remarks` are about names and classes, one line each.
    """

    splits: dict[str, list[Annotated[A]]]
    classes: list[str]
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def hold_out(self, share: float) -> Listing[A]:
        """The same listing; if only `train` holds images, a fixed share of them is held out.

        A remark counts images that are in `train` and in another split.
        """
        others = any(photos for split, photos in self.splits.items() if split != "train")
        if others or "train" not in self.splits:
            files = {split: [str(p.file) for p in photos] for split, photos in self.splits.items()}
            self.remarks += shared_images(files)
            return self
        splits = {**self.splits, "train": []}
        for photo in self.splits["train"]:
            split = "holdout" if held_out(photo.name, share) else "train"
            splits.setdefault(split, []).append(photo)
        return Listing(splits, self.classes, self.faults, self.remarks)


def checked_boxes(
    boxes: Iterable[Box], classes: Sequence[str], size: tuple[int, int]
) -> tuple[np.ndarray, list[Fault]]:
    """Boxes clipped to the image, without invalid ones.

    Args:
        boxes: Boxes of one image.
        classes: Known class names.
        size: The image's height and width.

    Returns:
        float32 [m, 5] of class, x1, y1, x2, y2 in pixels of the image; and the errors found.
    """
    height, width = size
    kept, faults = [], []
    for box in boxes:
        corners = box.in_pixels(size)
        x1, y1, x2, y2 = corners
        cut = np.clip(corners, 0, (width, height, width, height))
        if box.name not in classes:
            faults.append((box.where, f"class '{box.name}' is not known; skipped"))
        elif not np.isfinite(corners).all() or x2 <= x1 or y2 <= y1:
            shown = f"({x1:g}, {y1:g}, {x2:g}, {y2:g})"
            faults.append((box.where, f"box {shown} has no area; skipped"))
        elif cut[2] <= cut[0] or cut[3] <= cut[1]:
            shown = f"({x1:g}, {y1:g}, {x2:g}, {y2:g})"
            faults.append((box.where, f"box {shown} is outside its {width} x {height} image"))
        else:
            kept.append((classes.index(box.name), *cut))
    return np.array(kept, np.float32).reshape(-1, 5), faults


def class_file(root: Path) -> list[str]:
    """As `class_names`, of `classes.txt`; empty if there is no such file."""
    file = root / "classes.txt"
    return class_names(file) if file.is_file() else []


def class_names(file: Path) -> list[str]:
    """Names in a text file, one per line in class order.

    Raises:
        DataError: A line before the last name is blank, or the file is not UTF-8.
    """
    names = [clean(line) for line in _lines(file)]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        # Skipping the line would give all later classes other numbers.
        raise DataError(
            f"{file}:{names.index('') + 1}: a blank line between class names",
            hint="write the name of this class, or remove the line",
        )
    return names


def name_in(root: Path, file: Path) -> str:
    """A file's name relative to `root`, safe to hash and print."""
    return readable(file.relative_to(root).as_posix())


def files_by_stem(folder: Path, suffix: str) -> ByName[Path]:
    """Files of a folder that end in `suffix`, by file name without suffix."""
    return ByName((f.stem, f) for f in _files(folder) if f.suffix.lower() == suffix)


def images_by_stem(folder: Path) -> ByName[Path]:
    """Image files of a folder by file name without suffix; two may share a name."""
    return ByName((file.stem, file) for file in _files(folder) if is_image(file.name))


def unread_images(folder: Path) -> list[Fault]:
    """Image files of a folder whose format cannot be read."""
    reasons = ((file, why_not_an_image(file.name)) for file in _files(folder))
    return [(readable(str(file)), f"{why}; skipped") for file, why in reasons if why]


def only_one(name: str, found: Sequence[Path], folder: str) -> Path:
    """The one file with a given name.

    Raises:
        FileNotFoundError: No file or several files match.
    """
    if len(found) == 1:
        return found[0]
    if not found:
        raise FileNotFoundError(f"'{name}' is not in {folder}/")
    names = ", ".join(readable(file.name) for file in found)
    raise FileNotFoundError(f"'{name}' can be {names} in {folder}/")


def split_folders(root: Path) -> list[str]:
    """Names of the folders in `root` that are named after a split."""
    names = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    return [name for name in names if split_named(name)]


def split_lists(folder: Path, known: ByName[Path]) -> dict[str, list[tuple[str, str]]]:
    """`train.txt`, `val.txt`, `test.txt` of a folder: the names in each, and file and line.

    Other spellings of the splits count too. A line is one of the names in `known`, optionally with
    an image suffix or, as in Pascal VOC's lists per class, with words after it. `trainval.txt` is
    used if there is no `train.txt`.

    Raises:
        DataError: Two lists are for the same split, or one is not UTF-8 text.
    """
    lists = {file.stem: file for file in _files(folder) if file.suffix.lower() == ".txt"}
    files = {split: lists[name] for split, name in splits_by_name(lists, folder).items()}
    everything = folder / "trainval.txt"
    if "train" not in files and everything.is_file():
        files.pop("val", None)  # part of trainval
        files = {"train": everything, **files}
    return {
        split: [
            (_known_name(line.strip(), known), f"{file}:{number}")
            for number, line in enumerate(_lines(file), start=1)
            if line.strip()
        ]
        for split, file in files.items()
    }


def stated_size(height: Any, width: Any) -> tuple[int, int] | None:
    """Height and width as stated in a file; None if missing, not numeric or 0."""
    try:
        size = int(height), int(width)
    except (TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def in_pixels(size: tuple[int, int]) -> str:
    """Height and width as text for people, width first."""
    return f"{size[1]} x {size[0]}"


def _known_name(line: str, known: ByName[Path]) -> str:
    """The known name on a line; the line itself if it is not known."""
    readings = [line, _stem(line), line.split()[0], _stem(line.split()[0])]
    return next((name for name in readings if name in known), line)


def _stem(name: str) -> str:
    path = Path(name.replace("\\", "/"))
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else name


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _lines(file: Path) -> list[str]:
    try:
        return read_text(file).splitlines()
    except ValueError as error:
        raise DataError(f"{file}: {error}", hint="save it as UTF-8") from error
