"""Annotated photos as image sources: decoded once, letterboxed, their labels moved along."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, MutableSequence, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hgkd_edge import processes
from hgkd_edge.data.annotations.coco import coco_boxes, coco_files, coco_shapes
from hgkd_edge.data.annotations.listing import (
    Annotated,
    Box,
    Fault,
    Listing,
    checked_boxes,
    in_pixels,
)
from hgkd_edge.data.annotations.masks import all_mask_folders, mask_folders, read_mask
from hgkd_edge.data.annotations.outlines import paint
from hgkd_edge.data.annotations.voc import voc_boxes
from hgkd_edge.data.decode import allocate
from hgkd_edge.data.geometry import IGNORED, letterbox, place, to_rgb
from hgkd_edge.data.sources import ImageSource
from hgkd_edge.errors import DataError
from hgkd_edge.recipe import DataConfig

__all__ = ["open_boxes", "open_masks"]

NO_BOX = -1  # class of the rows that fill up a photo's boxes
# A photo's annotation and size -> its label on the canvas, and what had to be left out.
Reader = Callable[[Any, tuple[int, int]], tuple[np.ndarray, list[Fault]]]


def open_boxes(config: DataConfig) -> dict[str, ImageSource]:
    """Photos with boxes by split: COCO JSON or Pascal VOC XML.

    Labels are float32 [n, M, 5]: class, x1, y1, x2, y2 in canvas pixels; rows of class -1 fill up.

    Raises:
        DataError: The folder is none of these, or no photo or no box of training can be used.
    """
    root, canvas = _root(config), config.size
    if any((root / "Annotations").glob("*.xml")):
        listing = voc_boxes(root, config.holdout)
    elif files := coco_files(root):
        listing = coco_boxes(root, files, config.holdout)
    else:
        raise DataError(
            f"{root}: holds no boxes that can be read",
            hint="COCO: annotations/*.json and the photos' folders; "
            "Pascal VOC: Annotations/*.xml and JPEGImages/",
        )
    _require_classes(listing, root)

    def read(boxes: list[Box], size: tuple[int, int]) -> tuple[np.ndarray, list[Fault]]:
        kept, faults = checked_boxes(boxes, listing.classes, size)
        kept[:, 1:] = place(size, canvas).to_canvas(kept[:, 1:])
        return kept, faults

    sources = {}
    for split, photos in listing.splits.items():
        labels: list[np.ndarray] = [np.zeros((0, 5), np.float32)] * len(photos)
        source = _decode(photos, listing, split, config, labels, read)
        most = max((len(boxes) for boxes in labels), default=0)
        padded = torch.full((len(source), max(1, most), 5), float(NO_BOX))
        for row, boxes in zip(padded, labels, strict=False):
            row[: len(boxes)] = torch.from_numpy(boxes)
        source.labels = padded
        sources[split] = source
    _ready(sources, root)
    if not bool((sources["train"].labels[..., 0] != NO_BOX).any()):
        raise _no_object(sources["train"], root, "box")
    return sources


def open_masks(config: DataConfig, *, binary: bool) -> dict[str, ImageSource]:
    """Photos with a class for every pixel by split: masks in folders, VOC's, or COCO outlines.

    Labels are uint8 [n, H_canvas, W_canvas]; 255 is ignored: it stands where the annotation gives
    no class, and round the photo.

    Args:
        config: Its path is read; `source` must be `folder`.
        binary: Take all numbers above 0 (all objects) as one class, `foreground`.

    Raises:
        DataError: The folder is none of these, has too many classes, or no photo or no object of
            training can be used.
    """
    root = _root(config)
    listing: Listing[Any]
    if folders := all_mask_folders(root):
        listing = mask_folders(root, config.holdout)
        for _, masks in folders.values():
            if masks.name == "instances" and not binary:
                raise DataError(
                    f"{masks}: numbers objects, not classes",
                    hint="--set segment.binary=true tells objects from background",
                )
        read = _mask_reader(listing.classes, binary=binary)
    elif files := coco_files(root):
        listing = coco_shapes(root, files, config.holdout, binary=binary)
        read = paint
    else:
        raise DataError(
            f"{root}: holds no label maps that can be read",
            hint="images/ and masks/ with files of equal names (also in train/ and val/); Pascal "
            "VOC: JPEGImages/ and SegmentationClass/; COCO: annotations/*.json and photos",
        )
    if binary:
        listing.classes = ["background", "foreground"]
    if len(listing.classes) > IGNORED:
        raise DataError(
            f"{root}: has {len(listing.classes)} classes; label maps hold {IGNORED}, numbers 0 to "
            f"{IGNORED - 1}",
            hint="--set segment.binary=true takes all objects as one class",
        )
    sources = {}
    for split, photos in listing.splits.items():
        labels = allocate((len(photos), *config.size))
        source = _decode(photos, listing, split, config, labels, _letterboxed(read, config.size))
        source.labels = torch.from_numpy(labels[: len(source)])
        sources[split] = source
    _name_classes(sources, root)
    _ready(sources, root)
    # Photo by photo: one is enough, and all may be larger than memory.
    if not any(((one > 0) & (one != IGNORED)).any() for one in sources["train"].labels):
        raise _no_object(sources["train"], root, "pixel of an object")
    return sources


def _mask_reader(classes: Sequence[str], *, binary: bool) -> Reader:
    def read(file: Path, size: tuple[int, int]) -> tuple[np.ndarray, list[Fault]]:
        labels = read_mask(file, size, binary=binary)
        highest = int(labels.max(initial=0, where=labels != IGNORED))
        if classes and not binary and highest >= len(classes):
            raise ValueError(f"mask holds class {highest}, classes.txt names {len(classes)}")
        return labels, []

    return read


def _letterboxed(read: Reader, canvas: tuple[int, int]) -> Reader:
    """The same label map, on the canvas."""

    def moved(annotation: Any, size: tuple[int, int]) -> tuple[np.ndarray, list[Fault]]:
        labels, faults = read(annotation, size)
        nearest = Image.Resampling.NEAREST
        image = letterbox(Image.fromarray(labels), canvas, fill=IGNORED, resample=nearest)
        return np.asarray(image), faults

    return moved


def _decode(
    photos: list[Annotated[Any]],
    listing: Listing[Any],
    split: str,
    config: DataConfig,
    labels: MutableSequence[np.ndarray] | np.ndarray,
    read: Reader,
) -> ImageSource:
    """Decode a split's photos and fill `labels` in their order; its caller sets `source.labels`.

    What cannot be read is left out, and the gap closed, in photos and labels.
    """
    height, width = config.size
    pixels = allocate((len(photos), 3, height, width))

    def decode(i: int) -> tuple[str, list[Fault]]:
        """sha256 of photo and label ('': cannot be used), and the faults met."""
        photo = photos[i]
        try:
            content = photo.file.read_bytes()
            with Image.open(io.BytesIO(content)) as image:
                size = image.height, image.width  # before a JPEG is decoded at a coarser scale
                if photo.size not in (None, size):
                    stated, found = in_pixels(photo.size), in_pixels(size)
                    raise ValueError(f"has {found} pixels, its annotations are for {stated}")
                image.draft("RGB", (width * 2, height * 2))
                canvas = letterbox(to_rgb(image), (height, width))
            labels[i], faults = read(photo.annotation, size)
        except Exception as error:  # a broken file may raise anything
            return "", [(str(photo.file), f"{error or type(error).__name__}; photo left out")]
        pixels[i] = np.asarray(canvas).transpose(2, 0, 1)
        return hashlib.sha256(content + labels[i].tobytes()).hexdigest(), faults

    cores = max(1, (os.cpu_count() or 1) // processes.local_count())
    threads = cores if config.workers == "auto" else max(1, config.workers)
    with ThreadPoolExecutor(threads) as pool:
        outcomes = list(pool.map(decode, range(len(photos))))
    kept = [i for i, (content_hash, _) in enumerate(outcomes) if content_hash]
    for gap, i in enumerate(kept):
        if gap != i:
            pixels[gap], labels[gap] = pixels[i], labels[i]
    digest = hashlib.sha256()
    for i in kept:
        digest.update(f"{photos[i].name}\0{outcomes[i][0]}\n".encode())
    return ImageSource(
        images=torch.from_numpy(pixels[: len(kept)]),
        labels=torch.empty(0),
        names=[photos[i].name for i in kept],
        classes=listing.classes,
        fingerprint=digest.hexdigest(),
        skipped=[*listing.faults.get(split, []), *(f for _, faults in outcomes for f in faults)],
    )


def _root(config: DataConfig) -> Path:
    if config.source != "folder" or config.path is None:
        raise DataError(
            f"data.source '{config.source}' carries neither boxes nor label maps",
            hint="name a folder: --data DIR",
        )
    root = config.path.expanduser()
    if not root.is_dir():
        raise DataError(f"data.path '{root}' is not a folder", hint="name a folder: --data DIR")
    return root


def _require_classes(listing: Listing[Any], root: Path) -> None:
    if "train" not in listing.splits:
        raise DataError(
            f"{root}: has no training split, only {', '.join(listing.splits)}",
            hint="name one of the annotation files or lists 'train'",
        )
    if not listing.classes:
        first = _first(listing.faults.get("train", []))
        raise DataError(f"{root}: its training split names no class of object{first}")


def _name_classes(sources: dict[str, ImageSource], root: Path) -> None:
    """Where the data name no classes, number those that their masks hold."""
    for source in sources.values():
        if source.classes:
            return
    highest = 0
    for source in sources.values():
        counted = source.labels[source.labels != IGNORED]
        highest = max(highest, int(counted.max()) if len(counted) else 0)
    if highest == 0 and any(len(source) for source in sources.values()):
        raise DataError(
            f"{root}: its masks hold no class but 0 and {IGNORED} (ignored)",
            hint="is 255 the object? --set segment.binary=true makes all above 0 one class",
        )
    for source in sources.values():
        source.classes = ["background", *(f"class {i}" for i in range(1, highest + 1))]


def _ready(sources: dict[str, ImageSource], root: Path) -> None:
    """Refuse a training split of which nothing is left."""
    if not len(sources.get("train", ())):
        first = _first([fault for source in sources.values() for fault in source.skipped])
        raise DataError(f"{root}: no photo of a training split can be used{first}")


def _no_object(source: ImageSource, root: Path, missing: str) -> DataError:
    """The error for training photos on which there is nothing to learn."""
    return DataError(
        f"{root}: not one {missing} in {len(source)} training photos{_first(source.skipped)}",
        hint="do annotations, categories and classes.txt use the same ids and names?",
    )


def _first(faults: list[Fault]) -> str:
    return f"; the first of {len(faults)} faults, {': '.join(faults[0])}" if faults else ""
