"""COCO JSON: boxes, and label maps painted from polygons and run lengths."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from hgkd_edge.data.annotations.listing import Annotated, Box, Fault, Listing, split_of
from hgkd_edge.data.geometry import IGNORED
from hgkd_edge.errors import DataError

__all__ = ["Shape", "coco_boxes", "coco_files", "coco_shapes", "paint"]

T = TypeVar("T")


class Shape(NamedTuple):
    """The outline of one object.

    Attributes:
        label: Number of its class; 255 for a crowd, whose pixels are ignored.
        outline: Polygons, or run lengths, as COCO keeps them.
        where: File and line.
    """

    label: int
    outline: Any
    where: str


@dataclass(frozen=True)
class _File:
    """One parsed JSON file, and the lines at which its annotations begin."""

    path: Path
    content: dict[str, Any]
    lines: list[int]

    def by_image(self) -> dict[Any, list[tuple[str, Any]]]:
        """Image id -> (file and line, annotation)."""
        found: dict[Any, list[tuple[str, Any]]] = {}
        for line, item in zip(self.lines, self.content["annotations"], strict=True):
            image = item.get("image_id") if isinstance(item, dict) else None
            found.setdefault(image, []).append((f"{self.path}:{line}", item))
        return found


def coco_files(root: Path) -> dict[str, Path]:
    """Annotation files by split ('' where the name speaks of none); empty if there are none.

    Looked for in `annotations/`, in `root` itself, and beside the photos in `train/`, `val/`,
    `valid/` and `test/`.

    Raises:
        DataError: Two files speak of one split.
    """
    inside = [file for split in ("train", "val", "valid", "test") for file in _jsons(root / split)]
    files = _jsons(root / "annotations") or _jsons(root) or inside
    chosen = [file for file in files if file.name.startswith("instances")] or files
    found: dict[str, Path] = {}
    for file in chosen:
        split = split_of(file.stem) or (split_of(file.parent.name) if file in inside else "")
        if split in found:
            raise DataError(
                f"{root}: both {found[split].name} and {file.name} could be the annotations"
                + (f" of split '{split}'" if split else ""),
                hint="keep one JSON file per split, with train, val or test in its name",
            )
        found[split] = file
    return found


def coco_boxes(root: Path, files: dict[str, Path], holdout: float) -> Listing[list[Box]]:
    """Photos and their boxes; crowds are left out.

    Raises:
        DataError: A file is not COCO JSON.
    """
    parsed = {split: _read(file) for split, file in files.items()}

    def box(item: dict[str, Any], name: str, where: str) -> Box | None:
        x, y, width, height = map(float, item["bbox"])
        corners = (x, y, x + width, y + height)
        return None if item.get("iscrowd") else Box(name, corners, where)

    return _listing(root, parsed, _classes(parsed), holdout, box)


def coco_shapes(
    root: Path, files: dict[str, Path], holdout: float, *, binary: bool
) -> Listing[list[Shape]]:
    """Photos and the outlines of their objects; class 0 is the background.

    Raises:
        DataError: A file is not COCO JSON.
    """
    parsed = {split: _read(file) for split, file in files.items()}
    classes = ["background", *(["foreground"] if binary else _classes(parsed))]

    def shape(item: dict[str, Any], name: str, where: str) -> Shape:
        if not binary and name not in classes:
            raise ValueError(f"class '{name}' is not known")
        label = 1 if binary else classes.index(name)
        return Shape(IGNORED if item.get("iscrowd") else label, item["segmentation"], where)

    return _listing(root, parsed, classes, holdout, shape)


def paint(shapes: list[Shape], size: tuple[int, int]) -> tuple[np.ndarray, list[Fault]]:
    """The label map of a photo of height and width `size`, uint8 [H, W], and the faults.

    Small objects are painted over large ones.
    """
    from pycocotools import mask as coco_mask

    painted, faults = [], []
    for shape in shapes:
        try:
            runs = shape.outline
            if not isinstance(runs, dict) or isinstance(runs["counts"], list):
                runs = coco_mask.frPyObjects(runs, *size)
            inside = coco_mask.decode(coco_mask.merge(runs) if isinstance(runs, list) else runs)
            if inside.shape != size:
                raise ValueError(f"outline of a photo of {inside.shape[1]} x {inside.shape[0]}")
        except Exception as error:  # pycocotools raises bare Exceptions
            faults.append((shape.where, f"no proper outline ({error}); left out"))
            continue
        if inside.any():
            painted.append((shape.label, inside.astype(bool)))
        else:
            faults.append((shape.where, "outline has no area; left out"))
    labels = np.zeros(size, np.uint8)
    for label, inside in sorted(painted, key=lambda pair: -int(pair[1].sum())):
        labels[inside] = label
    return labels, faults


def _jsons(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json")) if folder.is_dir() else []


def _read(path: Path) -> _File:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(p), list) for p in parts):
        raise DataError(
            f"{path}: is not COCO JSON: it lacks a list of {', '.join(parts)}",
            hint="see https://cocodataset.org/#format-data",
        )
    return _File(path, content, _lines(text, "annotations"))


def _lines(text: str, key: str) -> list[int]:
    """The line at which each item of the top-level list `key` begins, in valid JSON."""
    decoder = json.JSONDecoder()
    place = text.index("{") + 1
    while True:
        name, place = decoder.raw_decode(text, _skip(text, place, " \t\r\n,"))
        place = _skip(text, place, " \t\r\n:")
        if name == key:
            break
        _, place = decoder.raw_decode(text, place)
    lines, line, counted = [], 1, 0
    place = _skip(text, place + 1, " \t\r\n,")
    while text[place] != "]":
        line, counted = line + text.count("\n", counted, place), place
        lines.append(line)
        _, place = decoder.raw_decode(text, place)
        place = _skip(text, place, " \t\r\n,")
    return lines


def _skip(text: str, place: int, characters: str) -> int:
    while text[place] in characters:
        place += 1
    return place


def _categories(file: _File) -> dict[Any, str]:
    """Category id -> name, in the order of ids."""
    try:
        found = {item["id"]: str(item["name"]) for item in file.content["categories"]}
        return dict(sorted(found.items()))
    except (KeyError, TypeError) as error:
        raise DataError(f"{file.path}: a category lacks its id or name: {error!r}") from error


def _classes(parsed: dict[str, _File]) -> list[str]:
    """Names of the training split's categories: another file may number them differently."""
    file = parsed.get("train") or next(iter(parsed.values()))
    return list(dict.fromkeys(_categories(file).values()))


def _images(
    root: Path, split: str, file: _File, faults: list[Fault]
) -> list[tuple[str, Path, Any]]:
    """Name, file and id of every photo that is there."""
    place = file.path.stem.removeprefix("instances_")  # train2017, as COCO itself names folders
    folders = [file.path.parent, root, root / "images"]
    folders += [base / name for base in (root, root / "images") for name in (place, split) if name]
    found = []
    for image in file.content["images"]:
        name = image.get("file_name") if isinstance(image, dict) else None
        candidates = [folder / str(name) for folder in folders]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if name is None or path is None or "id" not in image:
            faults.append((str(file.path), f"image '{name}' is not there; left out"))
        else:
            found.append((path.relative_to(root).as_posix(), path, image["id"]))
    return found


def _listing(
    root: Path,
    parsed: dict[str, _File],
    classes: list[str],
    holdout: float,
    convert: Callable[[dict[str, Any], str, str], T | None],
) -> Listing[list[T]]:
    """All photos of all files; `convert` takes an annotation, its class's name, file and line."""
    listing: Listing[list[T]] = Listing({}, classes)
    for split, file in parsed.items():
        names, annotations = _categories(file), file.by_image()
        photos: list[Annotated[list[T]]] = []
        faults: list[Fault] = []
        for name, image, key in _images(root, split, file, faults):
            objects = []
            for where, item in annotations.get(key, ()):
                try:
                    number = item["category_id"]
                    objects.append(convert(item, names.get(number, str(number)), where))
                except (KeyError, TypeError, ValueError) as error:
                    faults.append((where, f"annotation left out: {error!r}"))
            photos.append(Annotated(name, image, [item for item in objects if item is not None]))
        listing.splits[split], listing.faults[split] = photos, faults
    if list(parsed) != [""]:
        return listing
    parted = Listing.of_one(listing.splits[""], classes, holdout)
    parted.faults = {"train": listing.faults[""]}
    return parted
