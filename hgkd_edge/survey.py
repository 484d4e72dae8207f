"""Inspect a folder of annotated images before training: format, counts, pictures."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hgkd_edge.data.annotations.formats import (
    Boxes,
    Outlines,
    Place,
    find_boxes,
    find_outlines,
    placed,
)
from hgkd_edge.data.annotations.listing import Annotated, Box, Listing
from hgkd_edge.data.annotations.masks import all_mask_folders, mask_folders
from hgkd_edge.data.annotations.outlines import paint
from hgkd_edge.data.annotations.turns import Turns, meant_upright, size_of, upright_boxes
from hgkd_edge.data.csv_list import is_table
from hgkd_edge.data.depth import settled_bits
from hgkd_edge.data.images import open_image, read_image_file
from hgkd_edge.data.orientation import Turn, turn_of
from hgkd_edge.data.sources import decoding_threads, list_photos
from hgkd_edge.data.spread import evenly
from hgkd_edge.errors import DataError, raise_if_out_of_memory
from hgkd_edge.files import require_writable_folder
from hgkd_edge.parsing import cut
from hgkd_edge.recipe_sections import DataConfig
from hgkd_edge.tasks.answers import Detection, load_photo
from hgkd_edge.tasks.pictures import draw_boxes, draw_segments, picture_name, save_picture

__all__ = ["SplitSurvey", "Survey", "draw_survey", "survey"]


@dataclass(frozen=True)
class SplitSurvey:
    """One split.

    Attributes:
        images: Images that can be used.
        empty: Images without an object or a label.
        objects: Class -> its boxes, or its images where classes are folders.
        outlines: Objects with an outline.
        skipped: File and line, and why it is not used.
    """

    images: int
    empty: int = 0
    objects: dict[str, int] | None = None
    outlines: int = 0
    skipped: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Survey:
    """A data set.

    Attributes:
        format: Its layout.
        tasks: What `finetune --task` can learn from it.
        classes: Their names, in the order of their numbers.
        splits: By name.
        remarks: Decisions made, and possible mistakes in the data.
    """

    path: str
    format: str
    tasks: Sequence[str]
    classes: Sequence[str]
    splits: dict[str, SplitSurvey]
    remarks: Sequence[str]


def survey(config: DataConfig) -> Survey:
    """Inspect a data set; images are not decoded, only headers of annotated images are read.

    Raises:
        DataError: It holds no usable images.
    """
    assert config.path is not None, "the command names a path"
    place = placed(config.path)
    if place.root.is_dir():
        if all_mask_folders(place.root) and place.chosen is None:
            return _label_maps(config, place.root)
        if boxes := find_boxes(place, config.holdout):
            return _annotated(place.root, boxes, _outlines(place, config))
    return _classes(config)


def draw_survey(config: DataConfig, count: int, folder: Path) -> list[Path]:
    """Draw annotated images of the training split, evenly spread over it.

    Args:
        config: As for `survey`.
        count: How many.
        folder: Folder for the PNG files.

    Returns:
        The files; empty where images have neither boxes nor outlines.
    """
    place = placed(config.path or Path())
    boxes = find_boxes(place, config.holdout) if place.root.is_dir() else None
    if boxes is None:
        return []
    require_writable_folder(folder / "picture.png")
    outlines = _outlines(place, config)
    shapes = (
        {p.name: p.annotation for p in outlines.listing.splits.get("train", [])} if outlines else {}
    )
    turns, photos = Turns(), []
    for photo in boxes.listing.splits.get("train", []):
        with contextlib.suppress(Exception):  # unusable images are counted by `survey`
            _way_up(photo, turns)
            photos.append(photo)
    bits = settled_bits(
        lambda i: read_image_file(photos[i].file),
        [str(photo.file) for photo in photos],
        config.bits,
        threads=decoding_threads(config),
    ).bits
    classes = boxes.listing.classes
    drawn = (
        (i, _picture(photos[i], shapes.get(photos[i].name, []), classes, turns, bits))
        for i in evenly(len(photos), count)
    )
    return [save_picture(picture, folder / picture_name(i, photos[i].file)) for i, picture in drawn]


def _outlines(place: Place, config: DataConfig) -> Outlines | None:
    found = find_outlines(place, config.holdout, binary=False)
    held = found and any(p.annotation for split in found.listing.splits.values() for p in split)
    return found if held else None


def _annotated(root: Path, boxes: Boxes, outlines: Outlines | None) -> Survey:
    listing = boxes.listing
    if not any(listing.splits.values()):
        first = next((fault for faults in listing.faults.values() for fault in faults), None)
        reason = f"; the first problem, {first[0]}: {cut(first[1])}" if first else ""
        raise DataError(f"{root}: {boxes.format}, but not one image can be used{reason}")
    splits, turns = {}, Turns()
    for split, photos in listing.splits.items():
        shapes = outlines.listing.splits.get(split, []) if outlines else []
        count = sum(len(p.annotation) for p in shapes)
        splits[split] = _split(listing, split, photos, count, turns)
    tasks = ["detect", "segment"] if outlines else ["detect"]
    remarks = [*listing.remarks, *filter(None, [turns.remark()])]
    return Survey(str(root), boxes.format, tasks, listing.classes, splits, remarks)


def _split(
    listing: Listing[list[Box]],
    split: str,
    photos: list[Annotated[list[Box]]],
    outlines: int,
    turns: Turns,
) -> SplitSurvey:
    objects: Counter[str] = Counter()
    images = empty = 0
    skipped = list(listing.faults.get(split, []))
    usable = []
    for photo in photos:
        try:
            usable.append((photo, *_way_up(photo, turns)))
        except Exception as error:  # a broken file may raise anything
            raise_if_out_of_memory(error, photo.file)
            skipped.append((str(photo.file), f"{error or type(error).__name__}; image skipped"))
    for photo, turn, stated in usable:
        upright = turns.default if stated is None else stated
        kept, faults = upright_boxes(photo.annotation, listing.classes, turn, upright=upright)
        skipped += faults
        images += 1
        empty += not len(kept)
        objects.update(listing.classes[int(label)] for label in kept[:, 0])
    return SplitSurvey(images, empty, dict(objects), outlines, skipped)


def _way_up(photo: Annotated[Any], turns: Turns) -> tuple[Turn, bool | None]:
    """An image's orientation, and whether its annotation is for the upright image; None: unknown.

    Raises:
        ValueError: The annotation is for an image of another size.
    """
    with open_image(photo.file) as image:
        turn = turn_of(image)
    stated = meant_upright(turn, photo.size)
    if turn.orientation == 1:
        return turn, True
    turns.count(stated)
    return turn, stated


def _label_maps(config: DataConfig, root: Path) -> Survey:
    listing = mask_folders(root, config.holdout)
    splits = {
        split: SplitSurvey(len(photos), skipped=listing.faults.get(split, []))
        for split, photos in listing.splits.items()
    }
    return Survey(str(root), "label maps", ["segment"], listing.classes, splits, listing.remarks)


def _classes(config: DataConfig) -> Survey:
    listing = list_photos(config)
    splits = {}
    for split, photos in listing.splits.items():
        labels = photos.labels
        if listing.multi_hot:
            counts, empty = labels.sum(axis=0, dtype=int), ~labels.any(axis=1)
        else:
            counts = np.bincount(labels[labels >= 0], minlength=len(listing.classes))
            empty = labels < 0
        objects = dict(zip(listing.classes, counts.tolist(), strict=False))
        splits[split] = SplitSurvey(len(photos), int(empty.sum()), objects)
    if "train" in splits and listing.unused:
        first = splits["train"]
        splits["train"] = SplitSurvey(first.images, first.empty, first.objects, 0, listing.unused)
    if listing.multi_hot:
        tasks, name = ["multilabel"], "a table with several labels per image"
    elif len(listing.classes) > 1:
        tasks, name = ["classify"], "a table with labels" if is_table(config) else "class folders"
    else:
        tasks, name = [], "images without labels"
    return Survey(str(config.path), name, tasks, listing.classes, splits, listing.remarks)


def _picture(
    photo: Annotated[list[Box]], shapes: list[Any], classes: list[str], turns: Turns, bits: int
) -> Image.Image:
    """One image, upright, with its outlines filled and its boxes framed."""
    turn, stated = _way_up(photo, Turns())
    upright = turns.default if stated is None else stated
    picture = load_photo(photo.file, bits=bits)
    if shapes:
        painted = Image.fromarray(paint(shapes, size_of(turn, upright=upright))[0])
        picture = draw_segments(picture, np.asarray(painted if upright else turn.apply(painted)))
    kept, _ = upright_boxes(photo.annotation, classes, turn, upright=upright)
    found = [Detection(classes[int(row[0])], 1.0, tuple(row[1:].tolist())) for row in kept]
    return draw_boxes(picture, found, classes, scored=False)
