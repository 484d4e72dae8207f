"""LabelMe: one JSON file per image, with the shapes that were drawn on it.

Format: https://github.com/wkentaro/labelme (`labelme/_label_file.py`).
"""

from __future__ import annotations

import math
import ntpath
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from hgkd_edge.cells import counted
from hgkd_edge.data.annotations.listing import (
    Annotated,
    Box,
    Fault,
    Listing,
    class_file,
    name_in,
    stated_size,
)
from hgkd_edge.data.annotations.outlines import Shape
from hgkd_edge.data.annotations.pairs import ImagesBelow, files_below, split_of
from hgkd_edge.data.names import clean, name_classes
from hgkd_edge.parsing import brief, cut, parse_json, read_file, read_text

__all__ = ["is_labelme", "labelme_boxes", "labelme_shapes"]

T = TypeVar("T")
LOOKED_AT = 20  # JSON files of a folder checked to recognize the format
HEAD = 65_536  # bytes read of each; the image itself may follow, in base64
MAX_JSON_BYTES = 2**28
CORNERS = 64  # of the polygon that approximates a circle


def is_labelme(root: Path) -> bool:
    """Whether the JSON files of a folder are LabelMe files."""
    return any(map(_looks_like, islice(files_below(root, ".json"), LOOKED_AT)))


def labelme_boxes(root: Path, holdout: float) -> Listing[list[Box]]:
    """Images and the boxes around their shapes."""

    def box(name: str, outline: list[float], where: str) -> Box:
        xs, ys = outline[::2], outline[1::2]
        return Box(name, (min(xs), min(ys), max(xs), max(ys)), where)

    listing = _listing(root, box)
    met = {box.name for photo in listing.splits.get("train", ()) for box in photo.annotation}
    _name(listing, root, met)
    return listing.hold_out(holdout)


def labelme_shapes(root: Path, holdout: float, *, binary: bool) -> Listing[list[Shape]]:
    """Images and the outlines of their shapes; class 0 is the background."""
    named = _listing(root, lambda name, outline, where: (name, outline, where))
    met = {name for photo in named.splits.get("train", ()) for name, _, _ in photo.annotation}
    _name(named, root, met)
    classes = ["background", *(["foreground"] if binary else named.classes)]
    listing: Listing[list[Shape]] = Listing({}, classes, named.faults, named.remarks)
    for split, photos in named.splits.items():
        listing.splits[split] = []
        for photo in photos:
            shapes = []
            for name, outline, where in photo.annotation:
                if binary or name in classes:
                    label = 1 if binary else classes.index(name)
                    shapes.append(Shape(label, [outline], where))
                else:
                    listing.faults[split].append((where, f"class '{name}' is not known; skipped"))
            listing.splits[split].append(Annotated(photo.name, photo.file, shapes, photo.size))
    return listing.hold_out(holdout)


def _name(listing: Listing[Any], root: Path, met: set[str]) -> None:
    classes = name_classes(met)
    listing.classes = class_file(root) or classes.names
    listing.remarks += classes.remarks


def _looks_like(file: Path) -> bool:
    try:
        head = read_file(file, MAX_JSON_BYTES)[:HEAD]
    except (OSError, ValueError):
        return False
    return b'"shapes"' in head and (b'"imagePath"' in head or b'"imageData"' in head)


def _listing(root: Path, convert: Callable[[str, list[float], str], T]) -> Listing[list[T]]:
    below = ImagesBelow(root)
    listing: Listing[list[T]] = Listing({}, [], {"train": list(below.unused)})
    used = set()
    files = list(files_below(root, ".json"))
    for file in files:
        faults: list[Fault] = []
        split = split_of(file, root) or "train"
        try:
            content = parse_json(read_text(file, MAX_JSON_BYTES))
            if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
                raise ValueError("is not LabelMe's: it lacks a list of shapes")
            image = _image(content, file, below)
        except (OSError, ValueError) as error:
            listing.splits.setdefault(split, [])
            listing.faults.setdefault(split, []).append(
                (str(file), f"cannot be read, image skipped: {cut(str(error))}")
            )
            continue
        objects = []
        for number, shape in enumerate(content["shapes"]):
            where = f"{file}: shapes[{number}]"
            try:
                objects.append(convert(*_outlined(shape), where))
            except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
                faults.append((where, f"{_reason(error)}; skipped"))
        used.add(image)
        size = stated_size(content.get("imageHeight"), content.get("imageWidth"))
        photo = Annotated(name_in(root, image), image, objects, size)
        listing.splits.setdefault(split, []).append(photo)
        listing.faults.setdefault(split, []).extend(faults)
    described = {file.stem for file in files} | {image.stem for image in used}
    if bare := sum(image.stem not in described for image in below.files):
        listing.remarks.append(f"{counted(bare, 'image')} not used: without a JSON file")
    return listing


def _reason(error: Exception) -> str:
    """Why a shape cannot be used."""
    if isinstance(error, ValueError):
        return cut(str(error))
    return f"no proper shape ({brief(error)})"


def _image(content: dict[str, Any], file: Path, below: ImagesBelow) -> Path:
    """The image that `imagePath` names, else the one with the annotation file's name.

    Raises:
        FileNotFoundError: No such image is below the data set's folder.
    """
    named = ntpath.basename(str(content.get("imagePath") or ""))
    there = file.parent / named
    return there if named and there in below.known else below.find(file)


def _outlined(shape: Any) -> tuple[str, list[float]]:
    """A shape's class, and the polygon around it: x1, y1, x2, y2, ...

    Raises:
        ValueError: The shape type has no area.
    """
    name, kind = clean(str(shape["label"])), shape.get("shape_type") or "polygon"
    points = [(float(x), float(y)) for x, y in shape["points"]]
    if not all(math.isfinite(n) for point in points for n in point):
        raise ValueError("points are not finite")
    if kind == "rectangle" and len(points) == 2:
        (x1, y1), (x2, y2) = points
        points = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    elif kind == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        angles = (2 * math.pi * i / CORNERS for i in range(CORNERS))
        points = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
    elif kind not in ("polygon", "rectangle"):
        raise ValueError(f"shape_type {brief(kind)} is not read: use polygon, rectangle or circle")
    if len(points) < 3:
        raise ValueError(f"a {kind} of {len(points)} points")
    return name, [number for point in points for number in point]
