"""YOLO: a text file of normalized boxes or polygons per image, and `data.yaml` or `classes.txt`.

Ultralytics' layout (https://docs.ultralytics.com/datasets/detect), Darknet's, and what labelImg,
Label Studio, CVAT and Roboflow export as YOLO.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import yaml

from hgkd_edge.cells import counted
from hgkd_edge.data.annotations.listing import (
    Annotated,
    Box,
    Fault,
    Listing,
    class_names,
    split_lists,
)
from hgkd_edge.data.annotations.outlines import Shape
from hgkd_edge.data.annotations.pairs import ImagesBelow, files_below, split_of
from hgkd_edge.data.find_images import find_images, is_image
from hgkd_edge.data.names import clean, readable, split_named
from hgkd_edge.errors import DataError
from hgkd_edge.parsing import (
    MAX_LABEL_BYTES,
    MAX_SETTINGS_BYTES,
    StrictLoader,
    brief,
    cut,
    parse_yaml,
    read_text,
    yaml_fault,
)

__all__ = ["YoloFiles", "yolo_boxes", "yolo_files", "yolo_shapes"]

NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt")
# How far a normalized coordinate may lie outside [0, 1]: tools round, and boxes touch the border.
SLACK = 0.01


class YoloFiles(NamedTuple):
    """A YOLO data set that was found but not read.

    Attributes:
        root: Its folder.
        classes: Names by number.
        images: Split -> images, and where they are listed.
        keypoints: Each line ends in keypoints, which are not read.
        faults: What is missing.
    """

    root: Path
    classes: list[str]
    images: dict[str, list[Path]]
    keypoints: bool
    faults: list[Fault]


def yolo_files(root: Path, chosen: Path | None = None) -> YoloFiles | None:
    """The YOLO data set in a folder; None if there is none.

    Args:
        root: The folder.
        chosen: Its YAML file, if the user named one.

    Raises:
        DataError: Two YAML files describe the data set, or the only one cannot be used.
    """
    described = [chosen] if chosen else [file for file in _yamls(root) if _describes(file)]
    named = [file for file in _yamls(root) if file.stem in ("data", "dataset")]
    if not described and named and not _is_readable(named[0]):
        return _from_yaml(named[0])  # reports what is wrong with it
    if len(described) > 1:
        named = [file for file in described if file.stem in ("data", "dataset")]
        if len(named) != 1:
            names = ", ".join(readable(file.name) for file in described)
            raise DataError(f"{root}: {names} all describe a data set", hint="--data FILE.yaml")
        described = named
    if described:
        return _from_yaml(described[0])
    return _from_names(root)


def yolo_boxes(files: YoloFiles, holdout: float) -> Listing[list[Box]]:
    """Images and their boxes; a polygon is replaced by its bounding box.

    An image whose label file is empty or missing has no objects, as in Ultralytics.
    """

    def box(row: _Row) -> Box:
        points = row.numbers
        if row.polygon:
            corners = (min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2]))
        else:
            x, y, width, height = points
            corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        return Box(files.classes[row.label], corners, row.where, normalized=True)

    return _listing(files, holdout, files.classes, box)


def yolo_shapes(files: YoloFiles, holdout: float, *, binary: bool) -> Listing[list[Shape]]:
    """Images and the polygons of their objects; class 0 is the background."""

    def shape(row: _Row) -> Shape:
        if not row.polygon:
            raise ValueError("is a box, not an outline")
        label = 1 if binary else 1 + row.label
        return Shape(label, [list(row.numbers)], row.where, normalized=True)

    names = ["foreground"] if binary else files.classes
    return _listing(files, holdout, ["background", *names], shape)


class _Row(NamedTuple):
    """One object: its class, a box (center, width, height) or a polygon, and file and line."""

    label: int
    numbers: tuple[float, ...]
    polygon: bool
    where: str


def _listing(files: YoloFiles, holdout: float, classes: list[str], convert: Any) -> Listing[Any]:
    listing: Listing[Any] = Listing({}, classes)
    found, unlabeled = _label_files(files)
    for split, pairs in found.items():
        listing.splits[split], faults = [], list[Fault]()
        for image, file in pairs:
            objects = []
            try:
                rows = list(_rows(file, files, faults)) if file else []
            except (OSError, ValueError) as error:
                faults.append((str(file), f"cannot be read, image skipped: {cut(str(error))}"))
                continue
            for row in rows:
                try:
                    objects.append(convert(row))
                except ValueError as error:
                    faults.append((row.where, f"{error}; skipped"))
            listing.splits[split].append(Annotated(_name(files.root, image), image, objects))
        listing.faults[split] = faults
    listing.faults["train"] = files.faults + unlabeled + listing.faults.get("train", [])
    return listing.hold_out(holdout)


def _label_files(
    files: YoloFiles,
) -> tuple[dict[str, list[tuple[Path, Path | None]]], list[Fault]]:
    """Split -> its images and their label files, and the splits that were skipped.

    Held-out images without any label file are skipped, as in COCO JSON: challenges publish their
    test split this way. Scoring on it would count every answer as wrong.

    Raises:
        DataError: No image has a label file.
    """
    found = {
        split: [(image, _label_file(image)) for image in images]
        for split, images in files.images.items()
    }
    labeled = {split for split, pairs in found.items() if any(file for _, file in pairs)}
    if not labeled:
        raise DataError(
            f"{files.root}: none of its images has a label file",
            hint="labels are expected in labels/ next to images/, or next to each image: a.txt for "
            "a.jpg",
        )
    faults: list[Fault] = []
    for split in ("val", "test"):
        if "train" in labeled and split not in labeled and found.get(split):
            reason = f"no label file for {counted(len(found.pop(split)), 'image')}"
            faults.append((str(files.root), f"{reason}; split '{split}' skipped"))
    return found, faults


def _rows(file: Path, files: YoloFiles, faults: list[Fault]) -> Iterator[_Row]:
    for number, line in enumerate(read_text(file, MAX_LABEL_BYTES).splitlines(), start=1):
        if line.strip():
            where = f"{file}:{number}"
            try:
                yield _row(line.split(), files, where)
            except ValueError as error:
                faults.append((where, f"{error}; skipped"))


def _row(words: list[str], files: YoloFiles, where: str) -> _Row:
    """Parse one line of a label file.

    Raises:
        ValueError: The line is not valid.
    """
    try:
        label, *numbers = map(float, words)
    except ValueError:
        raise ValueError(f"not a line of numbers: {brief(' '.join(words))}") from None
    if not label.is_integer() or not 0 <= label < len(files.classes):
        raise ValueError(f"class {words[0][:20]} is not one of 0 to {len(files.classes) - 1}")
    box = len(numbers) in (4, 5) or (files.keypoints and len(numbers) > 5)
    if not box and (len(numbers) < 6 or len(numbers) % 2):
        raise ValueError(
            f"{len(numbers)} numbers after the class: a box has 4, a polygon 6 or more in pairs"
        )
    points = tuple(numbers[:4] if box else numbers)  # a fifth number is a prediction's confidence
    if not all(math.isfinite(n) and -SLACK <= n <= 1 + SLACK for n in points):
        raise ValueError("coordinates are not normalized to [0, 1]")
    return _Row(int(label), points, not box, where)


def _label_file(image: Path) -> Path | None:
    """The path of an image's label: `labels/` in place of the last `images/`, else next to it."""
    parts = list(image.parts[:-1])
    places = [image.parent]
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        places.insert(0, Path(*parts))
    elif parts:
        places.insert(0, image.parent / "labels")
    names = (place / f"{image.stem}.txt" for place in places)
    return next((file for file in names if os.path.lexists(file)), None)


def _name(root: Path, image: Path) -> str:
    return readable(Path(os.path.relpath(image, root)).as_posix())


def _yamls(root: Path) -> list[Path]:
    return sorted(
        f for f in root.iterdir() if f.suffix.lower() in (".yaml", ".yml") and f.is_file()
    )


def _is_readable(file: Path) -> bool:
    try:
        parse_yaml(read_text(file, MAX_SETTINGS_BYTES))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return True


def _describes(file: Path) -> bool:
    try:
        content = parse_yaml(read_text(file, MAX_SETTINGS_BYTES))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return (
        isinstance(content, dict) and "train" in content and bool({"names", "nc"} & content.keys())
    )


def _from_yaml(file: Path) -> YoloFiles:
    try:
        text = read_text(file, MAX_SETTINGS_BYTES)
        content = parse_yaml(text)
    except yaml.YAMLError as error:
        raise DataError(f"{file}: {yaml_fault(error)}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as YAML: {cut(str(error))}") from error
    if not isinstance(content, dict) or "train" not in content:
        raise DataError(
            f"{file}: does not describe a YOLO data set", hint="it needs train, val and names"
        )
    folder = file.parent
    stated = folder / str(content.get("path") or "").strip()
    base = stated if os.path.isdir(stated) else folder  # False for names too long
    images: dict[str, list[Path]] = {}
    faults: list[Fault] = []
    for key, value in content.items():
        split = split_named(str(key))
        if split is None or not value:
            continue
        entries = value if isinstance(value, list) else [value]
        for entry in map(str, entries):
            place = _existing(entry, base, folder)
            if place is None and split == "train":
                raise DataError(
                    f"{file}: train: '{cut(entry)}' does not exist",
                    hint=f"paths are relative to 'path' in the file, or to {folder}",
                )
            if place is None:
                faults.append((str(file), f"{key}: '{cut(entry)}' does not exist; skipped"))
            else:
                images.setdefault(split, []).extend(_images(place, base, faults))
    keypoints = content.get("kpt_shape") is not None
    names = _class_names(content, file, _as_written(text))
    return YoloFiles(folder, names, images, keypoints, faults)


class _AsWritten(StrictLoader):
    """Every plain word is text: `no`, `01`, `1e3` and `null` are kept as written."""

    # PyYAML's type stubs declare this as an instance attribute.
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]


def _as_written(text: str) -> Any:
    """The value of `names`, each name as text; None if empty."""
    content = parse_yaml(text, _AsWritten)
    return (content.get("names") if isinstance(content, dict) else None) or None


def _class_names(content: dict[str, Any], file: Path, names: Any) -> list[str]:
    if isinstance(names, dict):
        numbers = {str(number): name for number, name in names.items()}
        wanted = [str(number) for number in range(len(numbers))]
        if set(wanted) != numbers.keys():
            raise DataError(
                f"{file}: names: numbers must be 0 to {len(numbers) - 1} without a gap",
                hint=f"found {brief(sorted(numbers))}",
            )
        names = [numbers[number] for number in wanted]
    if names is None and isinstance(content.get("nc"), int) and 0 < content["nc"] <= 65536:
        names = list(range(content["nc"]))
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: names: must list the classes, such as [cat, dog]")
    found = [clean(str(name)) for name in names]
    twice = sorted({name for name in found if found.count(name) > 1}) if len(found) < 10_000 else []
    if twice:
        raise DataError(f"{file}: names: '{twice[0]}' is listed more than once")
    return found


def _existing(entry: str, base: Path, folder: Path) -> Path | None:
    """The path of a YAML entry; some files write `../train/images` for `train/images`."""
    entry = entry.replace("\\", "/")
    inside = entry
    while inside.startswith("../"):
        inside = inside.removeprefix("../")
    places = (base / entry, folder / entry, base / inside, folder / inside)
    return next((place for place in places if os.path.exists(place)), None)


def _images(place: Path, base: Path, faults: list[Fault]) -> list[Path]:
    """The images in a folder, or in a text file that lists them."""
    if place.is_dir():
        found = find_images(place)
        faults += [(str(place / name), f"{why}; skipped") for name, why in found.unused]
        return [place / name for name in found.names]
    if is_image(place.name):
        return [place]
    try:
        lines = read_text(place).splitlines()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{place}: cannot be read as a list of images: {cut(str(error))}"
        ) from error
    images = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line:
            continue
        # CVAT writes paths in a folder `data/` that its archive does not contain.
        names = (line, line.partition("/")[2])
        tries = (root / name for name in names if name for root in (place.parent, base))
        image = next((file for file in tries if os.path.isfile(file)), None)
        if image is None:
            faults.append((f"{place}:{number}", f"'{cut(line)}' is not there; skipped"))
        else:
            images.append(image)
    return images


def _from_names(root: Path) -> YoloFiles | None:
    """A data set without a YAML file: class names in a text file, labels next to images."""
    file = next((root / name for name in NAME_FILES if (root / name).is_file()), None)
    if file is None:
        return None
    below = ImagesBelow(root)
    stems = {image.stem for image in below.files}
    if not any(label.stem in stems for label in files_below(root, ".txt")):
        return None
    classes = class_names(file)
    lists = split_lists(root, below.by_stem)
    faults = list(below.unused)
    images: dict[str, list[Path]] = {}
    if any(split_of(image, root) for image in below.files):
        for image in below.files:
            images.setdefault(split_of(image, root) or "train", []).append(image)
    elif lists:
        for split, names in lists.items():
            found = [(below.by_stem.find(name), name, where) for name, where in names]
            images[split] = [files[0] for files, _, _ in found if len(files) == 1]
            faults += [
                (where, f"'{cut(name)}' is not there; skipped")
                for files, name, where in found
                if len(files) != 1
            ]
    else:
        images["train"] = below.files
    return YoloFiles(root, classes, images, False, faults)
