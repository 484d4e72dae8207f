"""Recognizes the format of a folder of annotated images by its contents."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hgkd_edge.data.annotations.coco import coco_boxes, coco_files, coco_shapes
from hgkd_edge.data.annotations.labelme import is_labelme, labelme_boxes, labelme_shapes
from hgkd_edge.data.annotations.listing import Box, Listing
from hgkd_edge.data.annotations.outlines import Shape
from hgkd_edge.data.annotations.voc import is_voc, voc_boxes
from hgkd_edge.data.annotations.yolo import yolo_boxes, yolo_files, yolo_shapes

__all__ = ["Boxes", "Outlines", "Place", "find_boxes", "find_outlines", "placed"]


class Place(NamedTuple):
    """Where annotated images lie.

    Attributes:
        root: Their folder.
        chosen: The `data.yaml` of a YOLO data set, if the user named it.
    """

    root: Path
    chosen: Path | None = None


def placed(path: Path) -> Place:
    """The folder that a path names, or the folder of the YAML file that it names."""
    path = path.expanduser()
    if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
        return Place(path.parent, path)
    return Place(path)


class Boxes(NamedTuple):
    """Images with boxes, and the name of their format."""

    format: str
    listing: Listing[list[Box]]


class Outlines(NamedTuple):
    """Images with outlines of objects, and the name of their format."""

    format: str
    listing: Listing[list[Shape]]


def find_boxes(place: Place, holdout: float) -> Boxes | None:
    """The boxes of a data set, in any supported format; None if there are none.

    Args:
        place: Its folder.
        holdout: Share of the images to hold out if the data set has no splits.

    Raises:
        DataError: A file that describes all of them cannot be used.
    """
    root = place.root
    if yolo := yolo_files(*place):
        return Boxes("YOLO", yolo_boxes(yolo, holdout))
    if is_voc(root):
        return Boxes("Pascal VOC", voc_boxes(root, holdout))
    if is_labelme(root):
        return Boxes("LabelMe", labelme_boxes(root, holdout))
    if files := coco_files(root):
        return Boxes("COCO", coco_boxes(root, files, holdout))
    return None


def find_outlines(place: Place, holdout: float, *, binary: bool) -> Outlines | None:
    """The outlines of a data set, in any supported format; None if there are none.

    Args: as for `find_boxes`; `binary` treats all objects as one class.

    Raises:
        DataError: A file that describes all of them cannot be used.
    """
    root = place.root
    if yolo := yolo_files(*place):
        return Outlines("YOLO", yolo_shapes(yolo, holdout, binary=binary))
    if is_labelme(root):
        return Outlines("LabelMe", labelme_shapes(root, holdout, binary=binary))
    if files := coco_files(root):
        return Outlines("COCO", coco_shapes(root, files, holdout, binary=binary))
    return None
