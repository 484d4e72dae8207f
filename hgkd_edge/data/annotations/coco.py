"""COCO JSON: boxes, and object outlines from which label maps are painted."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from hgkd_edge.data.annotations.listing import (
    Annotated,
    Box,
    Fault,
    Listing,
    split_folders,
    stated_size,
)
from hgkd_edge.data.annotations.outlines import Shape
from hgkd_edge.data.names import FileFinder, a_few, clean, readable, split_in, split_named
from hgkd_edge.data.resize import IGNORED
from hgkd_edge.errors import DataError, reason_of
from hgkd_edge.parsing import brief, cut, parse_json, read_text

__all__ = ["coco_boxes", "coco_files", "coco_shapes"]

T = TypeVar("T")


@dataclass(frozen=True)
class _File:
    """One parsed JSON file, and the lines where its images and annotations start."""

    path: Path
    content: dict[str, Any]
    lines: dict[str, list[int]]

    def items(self, key: str) -> Iterator[tuple[str, Any]]:
        """File and line, and item, of `images` or `annotations`."""
        for line, item in zip(self.lines[key], self.content[key], strict=True):
            yield f"{self.path}:{line}", item

    def by_image(self, faults: list[Fault]) -> dict[str | None, list[tuple[str, dict[str, Any]]]]:
        """Image id -> (file and line, annotation). Annotations without an image are reported."""
        found: dict[str | None, list[tuple[str, dict[str, Any]]]] = {
            _id(image, "id"): [] for _, image in self.items("images")
        }
        for where, item in self.items("annotations"):
            key = _id(item, "image_id")
            if key is not None and key in found:
                found[key].append((where, item))
            elif isinstance(item, dict):
                shown = item.get("image_id")
                faults.append(
                    (where, f"image_id {brief(shown)} does not exist; annotation skipped")
                )
            else:
                faults.append((where, f"{brief(item)} is not an annotation; skipped"))
        return found


class _Parsed(NamedTuple):
    """Files by split, and splits that were skipped."""

    files: dict[str, _File]
    faults: list[Fault]

    @property
    def training(self) -> _File:
        """The file of the training split."""
        return self.files.get("train") or next(iter(self.files.values()))


def coco_files(root: Path) -> dict[str, Path]:
    """Annotation files by split ('' if the name states no split); empty if there are none.

    Searches `annotations/`, `root` itself, and next to the images in `train/`, `val/` (or `valid/`,
    `validation/`) and `test/`. If nothing is found, searches every other folder of `root`.

    Raises:
        DataError: Two files are for the same split.
    """
    inside = [file for name in split_folders(root) for file in _jsons(root / name)]
    below = [
        file for folder in sorted(root.iterdir()) if folder.is_dir() for file in _jsons(folder)
    ]
    files = _jsons(root / "annotations") or _jsons(root) or inside or below
    chosen = [file for file in files if file.name.startswith("instances")] or files
    found: dict[str, Path] = {}
    for file in chosen:
        by_folder = split_named(file.parent.name) if file in inside else None
        split = split_in(file.stem) or by_folder or ""
        if split in found:
            raise DataError(
                f"{root}: both {found[split].name} and {file.name} could be the annotations"
                + (f" of split '{split}'" if split else ""),
                hint="keep one JSON file per split, with train, val or test in its name",
            )
        found[split] = file
    return found


def coco_boxes(root: Path, files: dict[str, Path], holdout: float) -> Listing[list[Box]]:
    """Images and their boxes; crowd annotations are skipped.

    Raises:
        DataError: A file is not COCO JSON.
    """
    parsed = _parse(files)

    def box(item: dict[str, Any], name: str, where: str) -> Box | None:
        x, y, width, height = map(float, item["bbox"])
        corners = (x, y, x + width, y + height)
        return None if item.get("iscrowd") else Box(name, corners, where)

    return _listing(root, parsed, _classes(parsed), holdout, box)


def coco_shapes(
    root: Path, files: dict[str, Path], holdout: float, *, binary: bool
) -> Listing[list[Shape]]:
    """Images and the outlines of their objects; class 0 is the background.

    Raises:
        DataError: A file is not COCO JSON.
    """
    parsed = _parse(files)
    classes = ["background", *(["foreground"] if binary else _classes(parsed))]

    def shape(item: dict[str, Any], name: str, where: str) -> Shape:
        if not binary and name not in classes:
            raise ValueError(f"class '{name}' is not known")
        if not item["segmentation"]:
            raise ValueError("has a box and no outline")
        label = 1 if binary else classes.index(name)
        return Shape(IGNORED if item.get("iscrowd") else label, item["segmentation"], where)

    return _listing(root, parsed, classes, holdout, shape)


def _jsons(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.json") if file.is_file())


def _parse(files: dict[str, Path]) -> _Parsed:
    """All files except those of held-out images that have no annotations.

    Challenges publish their test split this way. Scoring on it would count every answer as wrong.

    Raises:
        DataError: A file is not COCO JSON.
    """
    parsed = _Parsed({}, [])
    for split, path in files.items():
        text, content = _load(path)
        bare = (
            isinstance(content, dict) and content.get("images") and not content.get("annotations")
        )
        if bare and split in ("val", "test") and {"train", ""} & files.keys():
            parsed.faults.append((str(path), f"has no annotations; split '{split}' skipped"))
        else:
            parsed.files[split] = _checked(path, text, content)
    return parsed


def _load(path: Path) -> tuple[str, Any]:
    try:
        text = read_text(path)
        return text, parse_json(text)
    except (OSError, ValueError) as error:
        reason = cut(reason_of(error))
        raise DataError(
            f"{path}: cannot be read as JSON: {reason}", hint="export the annotations again"
        ) from error


def _checked(path: Path, text: str, content: Any) -> _File:
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(p), list) for p in parts):
        raise DataError(
            f"{path}: is not COCO JSON: it lacks a list of {', '.join(parts)}",
            hint="see https://cocodataset.org/#format-data",
        )
    return _File(path, content, _lines(text, {"images", "annotations"}))


def _lines(text: str, keys: set[str]) -> dict[str, list[int]]:
    """The line at which each item of the top-level lists `keys` starts, in valid JSON."""
    decoder = json.JSONDecoder()
    found: dict[str, list[int]] = {}
    line, counted = 1, 0
    place = _skip(text, text.index("{") + 1, " \t\r\n,")
    while text[place] != "}":
        key, place = decoder.raw_decode(text, place)
        place = _skip(text, place, " \t\r\n:")
        if key not in keys:
            _, place = decoder.raw_decode(text, place)
        else:
            found[key] = []
            place = _skip(text, place + 1, " \t\r\n,")
            while text[place] != "]":
                line, counted = line + text.count("\n", counted, place), place
                found[key].append(line)
                _, place = decoder.raw_decode(text, place)
                place = _skip(text, place, " \t\r\n,")
            place += 1
        place = _skip(text, place, " \t\r\n,")
    return found


def _skip(text: str, place: int, characters: str) -> int:
    while text[place] in characters:
        place += 1
    return place


def _id(item: Any, field: str) -> str | None:
    """An id as text (some tools write 12 as "12" or 12.0); None if there is none."""
    value = item.get(field) if isinstance(item, dict) else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, (int, str)) else None


def _categories(file: _File) -> dict[str, str]:
    """Category id -> name, in the order of ids."""
    found: dict[str, str] = {}
    for item in file.content["categories"]:
        key = _id(item, "id")
        if key is None or "name" not in item:
            raise DataError(f"{file.path}: a category lacks its id or name: {brief(item)}")
        found[key] = clean(item["name"] if isinstance(item["name"], str) else brief(item["name"]))
    return dict(sorted(found.items(), key=lambda pair: _as_number(pair[0])))


def _as_number(key: str) -> tuple[float, str]:
    """Sort key for ids: numbers in numeric order, then texts."""
    try:
        return int(key), key
    except ValueError:
        return math.inf, key


def _classes(parsed: _Parsed) -> list[str]:
    """Category names of the training split; another file may number them differently."""
    return list(dict.fromkeys(_categories(parsed.training).values()))


def _images(
    root: Path, split: str, file: _File, faults: list[Fault]
) -> Iterator[tuple[str, Annotated[None]]]:
    """Each image that exists on disk, by id."""
    place = file.path.stem.removeprefix("instances_")  # train2017, as COCO itself names folders
    folders = [file.path.parent, root, root / "images"]
    for base in (root, root / "images"):
        own = split_folders(base) if split and base.is_dir() else []
        folders += [base / place, *(base / name for name in own if split_named(name) == split)]
    finders = [FileFinder(folder) for folder in dict.fromkeys(folders) if folder.is_dir()]
    for where, image in file.items("images"):
        key, name = _id(image, "id"), str(image.get("file_name")) if isinstance(image, dict) else ""
        exact = (finder.root / name for finder in finders)
        path = next((candidate for candidate in exact if os.path.isfile(candidate)), None)
        path = path or next((found for finder in finders if (found := finder.find(name))), None)
        if path is None or key is None:
            reason = "has no id" if key is None else "is not there"
            faults.append((where, f"image '{cut(name)}' {reason}; skipped"))
        else:
            size = stated_size(image.get("height"), image.get("width"))
            yield key, Annotated(_name(root, path), path, None, size)


def _name(root: Path, path: Path) -> str:
    """The path relative to `root`; an absolute `file_name` may point outside of it."""
    if not path.is_relative_to(root):
        path = root / os.path.relpath(path, root)
    return readable(path.relative_to(root).as_posix())


def _listing(
    root: Path,
    parsed: _Parsed,
    classes: list[str],
    holdout: float,
    convert: Callable[[dict[str, Any], str, str], T | None],
) -> Listing[list[T]]:
    """All images of all files; `convert` gets an annotation, its class name, file and line."""
    listing: Listing[list[T]] = Listing({}, classes)
    for split, file in parsed.files.items():
        names, faults = _categories(file), list[Fault]()
        annotations = file.by_image(faults)
        photos: list[Annotated[list[T]]] = []
        for key, image in _images(root, split, file, faults):
            objects = []
            for where, item in annotations[key]:
                try:
                    number = _id(item, "category_id")
                    if number is None:
                        raise ValueError("no category_id")
                    objects.append(convert(item, names.get(number, number), where))
                except (KeyError, TypeError, ValueError, OverflowError) as error:
                    reason = cut(str(error)) if isinstance(error, ValueError) else brief(error)
                    faults.append((where, f"annotation skipped: {reason}"))
            found = [item for item in objects if item is not None]
            photos.append(Annotated(image.name, image.file, found, image.size))
        # A file whose name states no split is the training split if it is the only file.
        name = "train" if list(parsed.files) == [""] else split
        listing.splits[name], listing.faults[name] = photos, faults
    listing.faults["train"] = parsed.faults + listing.faults.get("train", [])
    listing.remarks += _without_objects(parsed)
    return listing.hold_out(holdout)


def _without_objects(parsed: _Parsed) -> list[str]:
    """A remark about categories that no training object has.

    They remain classes. Annotation tools export one numbering for all files, and dropping a class
    would renumber the outputs of models trained with it.
    """
    file = parsed.training
    owned = {_id(item, "category_id") for _, item in file.items("annotations")}
    bare = [name for key, name in _categories(file).items() if key not in owned]
    if not bare:
        return []
    scored = {
        _categories(other).get(_id(item, "category_id") or "")
        for other in parsed.files.values()
        if other is not file
        for _, item in other.items("annotations")
    }
    missed = [name for name in bare if name in scored]
    end = (
        f"; {a_few(missed)}: objects of other splits count as missed in every score"
        if missed
        else f" and never scored (remove them from {file.path.name} to drop them)"
    )
    return [
        f"warning: categories without a training object: {a_few(bare)}; they stay classes that are "
        f"never predicted{end}"
    ]
