"""Annotated photos that are listed but not yet read, and how a folder says which split they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from hgkd_edge.data.photos import IMAGE_SUFFIXES, SPLITS, held_out

__all__ = [
    "Annotated",
    "Box",
    "Fault",
    "Listing",
    "checked_boxes",
    "class_file",
    "images_by_stem",
    "split_lists",
    "split_of",
]

A = TypeVar("A")
Fault = tuple[str, str]  # where, and what is wrong


@dataclass(frozen=True)
class Box:
    """One object as its file gives it.

    Attributes:
        name: Its class.
        corners: x1, y1, x2, y2 in pixels of the photo as stored.
        where: File and line.
    """

    name: str
    corners: tuple[float, ...]
    where: str


@dataclass(frozen=True)
class Annotated(Generic[A]):
    """One photo and its annotation: its boxes, or what its mask is read from.

    Photos are taken as stored, not turned by EXIF: annotations count stored pixels.
    """

    name: str
    file: Path
    annotation: A


@dataclass
class Listing(Generic[A]):
    """Annotated photos by split, class names (empty: not known yet), and what was left out."""

    splits: dict[str, list[Annotated[A]]]
    classes: list[str]
    faults: dict[str, list[Fault]] = field(default_factory=dict)

    @classmethod
    def of_one(cls, photos: list[Annotated[A]], classes: list[str], share: float) -> Listing[A]:
        """Photos that bring no splits: a fixed share is kept from training."""
        splits: dict[str, list[Annotated[A]]] = {"train": []}
        for photo in photos:
            split = "holdout" if held_out(photo.name, share) else "train"
            splits.setdefault(split, []).append(photo)
        return cls(splits, classes)


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
    return file.read_text(encoding="utf-8").strip().splitlines() if file.is_file() else []


def images_by_stem(folder: Path) -> dict[str, Path]:
    """Image files of a folder by their name without suffix."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {file.stem: file for file in files if file.suffix.lower() in IMAGE_SUFFIXES}


def split_lists(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """`train.txt`, `val.txt`, `test.txt` of a folder: the names in each, and file and line.

    `trainval.txt` stands in for a `train.txt` that is not there.
    """
    files = {split: folder / f"{split}.txt" for split in SPLITS}
    if not files["train"].is_file():
        files["train"] = folder / "trainval.txt"
        if (folder / "val.txt").is_file():  # part of trainval
            del files["val"]
    return {split: list(_names(file)) for split, file in files.items() if file.is_file()}


def split_of(name: str) -> str:
    """The split that a name such as `instances_val2017` speaks of, or ''."""
    found = re.search(r"train|valid|val|test", name.lower())
    return {"valid": "val"}.get(found[0], found[0]) if found else ""


def _names(file: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if words := line.split():
            yield words[0], f"{file}:{number}"
