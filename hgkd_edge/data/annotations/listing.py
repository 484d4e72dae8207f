"""Annotated photos that are listed but not yet read, and how a folder says which split they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from hgkd_edge.data.photos import IMAGE_SUFFIXES, SPLIT_NAMES, held_out, splits_by_name
from hgkd_edge.errors import DataError

__all__ = [
    "Annotated",
    "Box",
    "Fault",
    "Listing",
    "checked_boxes",
    "class_file",
    "images_by_stem",
    "in_pixels",
    "split_lists",
    "split_of",
    "stated_size",
]

A = TypeVar("A")
Fault = tuple[str, str]  # where, and what is wrong


@dataclass(frozen=True)
class Box:
    """One object as its file gives it.

    Attributes:
        name: Its class.
        corners: x1, y1, x2, y2 in pixels of the photo.
        where: File and line.
    """

    name: str
    corners: tuple[float, ...]
    where: str


@dataclass(frozen=True)
class Annotated(Generic[A]):
    """One photo and its annotation: its boxes, or what its mask is read from.

    `size` is the height and width in pixels that the annotation's file states, if it does; `turns`
    says which way up that is, where EXIF turns the photo.
    """

    name: str
    file: Path
    annotation: A
    size: tuple[int, int] | None = None


@dataclass
class Listing(Generic[A]):
    """Annotated photos by split, class names (empty: not known yet), and what was left out."""

    splits: dict[str, list[Annotated[A]]]
    classes: list[str]
    faults: dict[str, list[Fault]] = field(default_factory=dict)

    def hold_out(self, share: float) -> Listing[A]:
        """The same; where only `train` holds photos, a fixed share of them is kept from it."""
        others = any(photos for split, photos in self.splits.items() if split != "train")
        if others or "train" not in self.splits:
            return self
        splits = {**self.splits, "train": []}
        for photo in self.splits["train"]:
            split = "holdout" if held_out(photo.name, share) else "train"
            splits.setdefault(split, []).append(photo)
        return Listing(splits, self.classes, self.faults)


def checked_boxes(
    boxes: Iterable[Box], classes: Sequence[str], size: tuple[int, int]
) -> tuple[np.ndarray, list[Fault]]:
    """Boxes cut at the photo's edges, without those that mean nothing.

    Args:
        boxes: Of one photo.
        classes: Known names.
        size: The photo's height and width.

    Returns:
        float32 [m, 5] of class, x1, y1, x2, y2 in pixels of the photo; and the faults.
    """
    height, width = size
    kept, faults = [], []
    for box in boxes:
        x1, y1, x2, y2 = box.corners
        cut = np.clip(box.corners, 0, (width, height, width, height))
        if box.name not in classes:
            faults.append((box.where, f"class '{box.name}' is not known; left out"))
        elif not np.isfinite(box.corners).all() or x2 <= x1 or y2 <= y1:
            shown = f"({x1:g}, {y1:g}, {x2:g}, {y2:g})"
            faults.append((box.where, f"box {shown} has no area; left out"))
        elif cut[2] <= cut[0] or cut[3] <= cut[1]:
            shown = f"({x1:g}, {y1:g}, {x2:g}, {y2:g})"
            faults.append((box.where, f"box {shown} is outside its {width} x {height} photo"))
        else:
            kept.append((classes.index(box.name), *cut))
    return np.array(kept, np.float32).reshape(-1, 5), faults


def class_file(root: Path) -> list[str]:
    """Names in `classes.txt`, one per line in the order of their numbers; empty without it."""
    file = root / "classes.txt"
    lines = _lines(file) if file.is_file() else []
    return [name for line in lines if (name := line.strip())]


def images_by_stem(folder: Path) -> dict[str, Path]:
    """Image files of a folder by their name without suffix."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {file.stem: file for file in files if file.suffix.lower() in IMAGE_SUFFIXES}


def split_lists(folder: Path, known: Collection[str]) -> dict[str, list[tuple[str, str]]]:
    """`train.txt`, `val.txt`, `test.txt` of a folder: the names in each, and file and line.

    A line is one of the names `known`, perhaps with an image's suffix or, as in Pascal VOC's lists
    per class, with words behind it. `trainval.txt` stands in for a `train.txt` that is not there.

    Raises:
        DataError: Two lists are of one split, or one is not text in UTF-8.
    """
    names = (name for name in SPLIT_NAMES if (folder / f"{name}.txt").is_file())
    files = {s: folder / f"{name}.txt" for s, name in splits_by_name(names, folder).items()}
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


def split_of(name: str) -> str:
    """The split that a name such as `instances_val2017` speaks of, or ''."""
    longest_first = sorted(SPLIT_NAMES, key=len, reverse=True)
    found = re.search("|".join(longest_first), name.lower())
    return SPLIT_NAMES[found[0]] if found else ""


def stated_size(height: Any, width: Any) -> tuple[int, int] | None:
    """Height and width as a file states them; None where they are missing, no numbers or 0."""
    try:
        size = int(height), int(width)
    except (TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def in_pixels(size: tuple[int, int]) -> str:
    """Height and width as people say them, width first."""
    return f"{size[1]} x {size[0]}"


def _known_name(line: str, known: Collection[str]) -> str:
    """The name that a line speaks of; the line itself where it is not known."""
    readings = [line, _stem(line), line.split()[0], _stem(line.split()[0])]
    return next((name for name in readings if name in known), line)


def _stem(name: str) -> str:
    path = Path(name)
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else name


def _lines(file: Path) -> list[str]:
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise DataError(f"{file}:{line}: is not text in UTF-8", hint="save it as UTF-8") from error
