"""Opens annotated images as image sources: recognizes, reads and checks a folder."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hgkd_edge.data.annotations.codes import (
    Codes,
    Coding,
    Ignore,
    Tally,
    binary_labels,
    fixed_coding,
    in_range,
    settle_coding,
)
from hgkd_edge.data.annotations.formats import Place, find_boxes, find_outlines, placed
from hgkd_edge.data.annotations.listing import (
    Annotated,
    Box,
    Fault,
    Listing,
)
from hgkd_edge.data.annotations.masks import all_mask_folders, mask_folders, mask_size, read_mask
from hgkd_edge.data.annotations.outlines import outlined_size, paint
from hgkd_edge.data.annotations.reading import AnnotatedPhotos, FilledBoxes, FilledMaps, Reader
from hgkd_edge.data.annotations.turns import upright_boxes
from hgkd_edge.data.box_labels import MAX_BOXES
from hgkd_edge.data.orientation import Turn
from hgkd_edge.data.photos import outside
from hgkd_edge.data.resize import IGNORED, place
from hgkd_edge.data.sources import ImageSource, decoding_threads
from hgkd_edge.errors import DataError, raise_if_out_of_memory
from hgkd_edge.recipe_sections import DataConfig

__all__ = ["open_boxes", "open_masks"]


def open_boxes(config: DataConfig) -> dict[str, ImageSource]:
    """Images with boxes, by split: COCO JSON, Pascal VOC XML, YOLO or LabelMe.

    Labels are `BoxLabels`: class, x1, y1, x2, y2 in canvas pixels.

    Raises:
        DataError: The format is unknown, or no training image or no training box can be used.
    """
    where, canvas = _place(config), config.size
    found = find_boxes(where, config.holdout)
    root = where.root
    if found is None:
        raise DataError(
            f"{root}: holds no boxes that can be read",
            hint="YOLO: data.yaml, images/ and labels/; COCO: annotations/*.json and images; "
            "Pascal VOC: XML files next to the images or in another folder; LabelMe: JSON files",
        )
    listing = found.listing
    _require_classes(listing, root)

    def read(boxes: list[Box], turn: Turn, upright: bool) -> tuple[np.ndarray, list[Fault]]:
        if len(boxes) > MAX_BOXES:
            raise ValueError(f"has {len(boxes):,} boxes; images with up to {MAX_BOXES:,} are used")
        kept, faults = upright_boxes(boxes, listing.classes, turn, upright=upright)
        kept[:, 1:] = place(turn.upright, canvas).to_canvas(kept[:, 1:])
        return kept, faults

    sources = {}
    annotated = AnnotatedPhotos(config, listing, lambda photo: photo.size)
    for split, photos in listing.splits.items():
        sources[split] = annotated.read(split, FilledBoxes(len(photos), read))
    _ready(sources, root)
    sources["train"].remarks += [*listing.remarks, *annotated.remarks(), *_outside(listing, root)]
    if not any(len(boxes) for boxes in sources["train"].labels):
        raise _no_object(sources["train"], root, "box")
    return sources


def open_masks(
    config: DataConfig, *, binary: bool, codes: Codes = "auto", ignore: Ignore = "auto"
) -> dict[str, ImageSource]:
    """Images with a class for every pixel, by split: masks in folders, VOC's, or COCO outlines.

    Labels are uint8 [n, H_canvas, W_canvas]. The value 255 is ignored: it marks pixels without a
    class and the margin around the image.

    Args:
        config: Its path is read; `source` must be `folder`.
        binary: Treat all numbers above 0 (all objects) as one class, `foreground`.
        codes: For masks, the number of each class (see `settle_coding`).
        ignore: For masks, the code of pixels without a class.

    Raises:
        DataError: The format is unknown, there are too many classes, or no training image or no
            training object can be used.
    """
    where = _place(config)
    root = where.root
    if (folders := all_mask_folders(root)) and not where.chosen:
        maps = _folder_maps(config, root, folders, binary=binary, codes=codes, ignore=ignore)
    elif outlines := find_outlines(where, config.holdout, binary=binary):
        maps = _Maps(AnnotatedPhotos(config, outlines.listing, _outline_size), paint)
    else:
        raise DataError(
            f"{root}: holds no label maps that can be read",
            hint="images/ and masks/ with files of equal names (also in train/ and val/); Pascal "
            "VOC: JPEGImages/ and SegmentationClass/; COCO: annotations/*.json and images; YOLO: "
            "data.yaml and polygons; LabelMe: JSON files",
        )
    photos, coding = maps.photos, maps.coding
    if binary:
        photos.listing.classes = ["background", "foreground"]
    _require_few(photos.listing.classes, root)
    sources, any_object = {}, False
    for split, listed in photos.listing.splits.items():
        labels = FilledMaps(
            len(listed),
            maps.read,
            config.size,
            background=-1 if coding and coding.ignored == 0 else 0,
            stream=photos.stream(),
            threads=photos.threads,
        )
        sources[split] = source = photos.read(split, labels)
        source.ignored = labels.ignored
        source.decided |= coding.settings() if coding else {}
        any_object |= split == "train" and labels.objects
    _ready(sources, root)
    decided = [*([maps.remark] if maps.remark else []), *_outside(photos.listing, root)]
    sources["train"].remarks += [*photos.listing.remarks, *decided, *photos.remarks()]
    if not any_object:
        raise _no_object(sources["train"], root, "pixel of an object")
    return sources


class _Maps(NamedTuple):
    """Images with label maps, how these are read, and what was decided about their codes."""

    photos: AnnotatedPhotos
    read: Reader
    coding: Coding | None = None
    remark: str = ""


def _folder_maps(
    config: DataConfig,
    root: Path,
    folders: dict[str, tuple[Path, Path]],
    *,
    binary: bool,
    codes: Codes,
    ignore: Ignore,
) -> _Maps:
    """Label maps that are images."""
    listing = mask_folders(root, config.holdout)
    photos = AnnotatedPhotos(
        config, listing, lambda photo: mask_size(photo.annotation), "its mask has"
    )
    if binary:
        return _Maps(photos, _binary_reader(ignore))
    _require_class_maps(folders)
    _require_few(listing.classes, root)
    coding, remark = _coding(listing, codes, ignore, config, root)
    listing.classes = list(coding.names)
    return _Maps(photos, _mask_reader(coding), coding, remark)


def _coding(
    listing: Listing[Path], codes: Codes, ignore: Ignore, config: DataConfig, root: Path
) -> tuple[Coding, str]:
    """Which code is which class: from the settings, else from the label maps."""
    if (coding := fixed_coding(listing.classes, codes, ignore, root)) is not None:
        return coding, ""

    def look(photo: Annotated[Path]) -> Tally | None:
        try:
            return Tally.of(in_range(read_mask(photo.annotation)))
        except Exception as error:  # a broken mask is reported when its image is read
            raise_if_out_of_memory(error, photo.annotation)
            return None

    tallies = {}
    with ThreadPoolExecutor(decoding_threads(config)) as pool:
        for split, photos in listing.splits.items():
            found = [tally for tally in pool.map(look, photos) if tally is not None]
            tallies[split] = Tally.sum(found)
    return settle_coding(tallies, listing.classes, codes, ignore, root)


def _mask_reader(coding: Coding) -> Reader:
    def read(file: Path, size: tuple[int, int]) -> tuple[np.ndarray, list[Fault]]:
        return coding.labels(read_mask(file)), []

    return read


def _binary_reader(ignore: Ignore) -> Reader:
    def read(file: Path, size: tuple[int, int]) -> tuple[np.ndarray, list[Fault]]:
        return binary_labels(read_mask(file), ignore), []

    return read


def _outline_size(photo: Annotated[Any]) -> tuple[int, int] | None:
    """The size that an annotation states, else the size that its run lengths fill."""
    return photo.size or outlined_size(photo.annotation)


def _require_class_maps(folders: dict[str, tuple[Path, Path]]) -> None:
    for _, masks in folders.values():
        if masks.name == "instances":
            raise DataError(
                f"{masks}: numbers objects, not classes",
                hint="--set segment.binary=true separates objects from background",
            )


def _require_few(classes: Sequence[str], root: Path) -> None:
    if len(classes) > IGNORED:
        raise DataError(
            f"{root}: has {len(classes)} classes; label maps hold {IGNORED}, numbers 0 to "
            f"{IGNORED - 1}",
            hint="--set segment.binary=true takes all objects as one class",
        )


def _place(config: DataConfig) -> Place:
    if config.source != "folder" or config.path is None:
        raise DataError(
            f"data.source '{config.source}' carries neither boxes nor label maps",
            hint="name a folder: --data DIR",
        )
    found = placed(config.path)
    if not found.root.is_dir():
        raise DataError(
            f"data.path '{found.root}' is not a folder", hint="name a folder: --data DIR"
        )
    return found


def _outside(listing: Listing[Any], root: Path) -> list[str]:
    files = (photo.file for photos in listing.splits.values() for photo in photos)
    return [line] if (line := outside(root, files)) else []


def _require_classes(listing: Listing[Any], root: Path) -> None:
    if "train" not in listing.splits:
        raise DataError(
            f"{root}: has no training split, only {', '.join(listing.splits)}",
            hint="name one of the annotation files or lists 'train'",
        )
    if not listing.classes:
        first = _first(listing.faults.get("train", []))
        raise DataError(f"{root}: its training split names no class of object{first}")


def _ready(sources: dict[str, ImageSource], root: Path) -> None:
    """Refuse a training split that has no usable images."""
    if not len(sources.get("train", ())):
        first = _first([fault for source in sources.values() for fault in source.skipped])
        raise DataError(f"{root}: no image of a training split can be used{first}")


def _no_object(source: ImageSource, root: Path, missing: str) -> DataError:
    """The error for training images without anything to learn."""
    return DataError(
        f"{root}: not one {missing} in {len(source)} training images{_first(source.skipped)}",
        hint="check that annotations, categories and classes.txt use the same ids and names",
    )


def _first(faults: list[Fault]) -> str:
    return f"; the first of {len(faults)} problems, {': '.join(faults[0])}" if faults else ""
