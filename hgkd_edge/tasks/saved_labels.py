"""Writes predictions as a data set that labeling tools and `finetune` read. No torch."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import yaml

from hgkd_edge.data.csv_list import NOT_CLASSES
from hgkd_edge.data.images import open_image
from hgkd_edge.data.names import readable
from hgkd_edge.data.orientation import turn_of
from hgkd_edge.errors import DataError
from hgkd_edge.files import atomic_write, write_json
from hgkd_edge.parsing import brief
from hgkd_edge.tasks.answers import Detection, FileAnswer, Label

__all__ = ["FORMATS", "require_savable", "save_labels"]

LONGEST = 255  # bytes of a file name
FORMATS = {
    "yolo": "detect",
    "coco": "detect",
    "voc": "detect",
    "folders": "classify",
    "csv": "multilabel",
}


class _Labeled(NamedTuple):
    """One image, its name in the data set, its upright height and width, and its prediction."""

    file: Path
    name: str
    size: tuple[int, int]
    boxes: Sequence[Detection]
    label: Label | None
    tags: Sequence[Label]


def require_savable(name: str, task: str, classes: Sequence[str], folder: Path) -> None:
    """Refuse a format that cannot store a model's answers, and a folder that is in use.

    Args:
        name: The format.
        task: The model's task.
        classes: Its classes.
        folder: Folder of the data set.

    Raises:
        DataError: The format is unsupported; the message lists supported formats. Or a class name
            cannot be a folder name, or the name of a column of labels. Or `folder` is not empty.
    """
    fitting = [known for known, of in FORMATS.items() if of == task]
    if name not in FORMATS:
        raise DataError(f"--save-labels '{name}': unknown; one of {', '.join(FORMATS)}")
    if name not in fitting:
        raise DataError(
            f"--save-labels {name}: the model's task is {task}",
            hint=f"use {' or '.join(fitting)}"
            if fitting
            else "predict writes its label maps to --out",
        )
    _require_plain(classes, name)
    # Files of an earlier call would stay next to new ones, or hand corrections would be lost.
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise DataError(f"--save-labels: '{folder}' is in use", hint="name another --out")


def save_labels(
    predicted: Sequence[FileAnswer],
    classes: Sequence[str],
    folder: Path,
    *,
    format: str,
    threshold: float,
) -> int:
    """Write predictions as a data set; images are linked, or copied if linking is impossible.

    Args:
        predicted: Results of `predict`; those with an error are skipped.
        classes: The model's classes.
        folder: Folder of the data set.
        format: One of `FORMATS`.
        threshold: Lowest probability of an image's class in `folders`; boxes, and labels in `csv`,
            are filtered already.

    Returns:
        The number of images written.

    Raises:
        DataError: A class name cannot be a folder name, or the name of a column of labels.
    """
    _require_plain(classes, format)
    images = [_labeled(one) for one in predicted if not one.error]
    return _WRITERS[format](images, classes, folder, threshold)


def _require_plain(classes: Sequence[str], format: str) -> None:
    """Refuse class names that the format cannot store as one name, before anything is written."""
    for name in classes:
        folder = format == "folders" and (name in ("", ".", "..") or {"/", "\\"} & set(name))
        if format == "csv" and name.lower() in NOT_CLASSES:
            raise DataError(
                f"--save-labels csv: class {brief(name)} cannot be a column: it names another one",
                hint="rename the class and fine-tune again",
            )
        if folder or len(name.encode(errors="replace")) > LONGEST or not name.isprintable():
            what = "be the name of a folder" if format == "folders" else "stand in a label file"
            raise DataError(
                f"--save-labels {format}: class {brief(name)} cannot {what}",
                hint="rename the class and fine-tune again",
            )


def _labeled(one: FileAnswer) -> _Labeled:
    file = Path(one.photo)
    with open_image(file) as image:
        size = turn_of(image).upright
    name = Path(one.picture).stem + readable(file.suffix)
    best = one.found.labels[0] if one.found.labels else None
    return _Labeled(file, name, size, one.found.boxes or (), best, one.found.tags or ())


def _place(image: _Labeled, folder: Path) -> None:
    """Put the image into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / image.name
    target.unlink(missing_ok=True)
    try:
        os.link(image.file.resolve(), target)
    except OSError:  # other file system, or no support for links
        shutil.copyfile(image.file, target)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _yolo(images: list[_Labeled], classes: Sequence[str], folder: Path, threshold: float) -> int:
    for image in images:
        height, width = image.size
        lines = []
        for box in image.boxes:
            x1, y1, x2, y2 = box.box
            numbers = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height]
            numbers += [(x2 - x1) / width, (y2 - y1) / height]
            lines.append(f"{classes.index(box.name)} " + " ".join(f"{n:.6f}" for n in numbers))
        _place(image, folder / "images")
        _write(folder / "labels" / f"{Path(image.name).stem}.txt", "".join(f"{s}\n" for s in lines))
    about = {"train": "images", "names": dict(enumerate(classes))}
    _write(folder / "data.yaml", yaml.safe_dump(about, sort_keys=False, allow_unicode=True))
    return len(images)


def _coco(images: list[_Labeled], classes: Sequence[str], folder: Path, threshold: float) -> int:
    content: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, start=1)],
    }
    for number, image in enumerate(images, start=1):
        height, width = image.size
        _place(image, folder / "images")
        content["images"].append(
            {"id": number, "file_name": image.name, "width": width, "height": height}
        )
        for box in image.boxes:
            x1, y1, x2, y2 = box.box
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": 1 + classes.index(box.name),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "score": box.score,
                }
            )
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    write_json(folder / "annotations" / "instances.json", content)
    return len(images)


def _voc(images: list[_Labeled], classes: Sequence[str], folder: Path, threshold: float) -> int:
    for image in images:
        _place(image, folder / "JPEGImages")
        root = ElementTree.Element("annotation")
        _fields(root, filename=image.name)
        size = ElementTree.SubElement(root, "size")
        _fields(size, width=image.size[1], height=image.size[0], depth=3)
        for box in image.boxes:
            item = ElementTree.SubElement(root, "object")
            _fields(item, name=box.name, difficult=0)
            corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), box.box, strict=True))
            _fields(ElementTree.SubElement(item, "bndbox"), **corners)
        ElementTree.indent(root)
        text = ElementTree.tostring(root, encoding="unicode")
        _write(folder / "Annotations" / f"{Path(image.name).stem}.xml", f"{text}\n")
    _write(folder / "classes.txt", "".join(f"{name}\n" for name in classes))
    return len(images)


def _fields(parent: ElementTree.Element, **fields: Any) -> None:
    for name, value in fields.items():
        ElementTree.SubElement(parent, name).text = str(value)


def _folders(images: list[_Labeled], classes: Sequence[str], folder: Path, threshold: float) -> int:
    sure = [
        (image, image.label.name)
        for image in images
        if image.label is not None and image.label.probability >= threshold
    ]
    for image, name in sure:
        _place(image, folder / name)
    return len(sure)


def _csv(images: list[_Labeled], classes: Sequence[str], folder: Path, threshold: float) -> int:
    """A table with one column of 0 and 1 per class, next to the images."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", *classes])
    for image in images:
        _place(image, folder / "images")
        held = {tag.name for tag in image.tags}
        table.writerow([f"images/{image.name}", *(int(name in held) for name in classes)])
    _write(folder / "labels.csv", text.getvalue())
    return len(images)


_WRITERS: dict[str, Callable[[list[_Labeled], Sequence[str], Path, float], int]] = {
    "yolo": _yolo,
    "coco": _coco,
    "voc": _voc,
    "folders": _folders,
    "csv": _csv,
}
