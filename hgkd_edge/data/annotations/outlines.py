"""Outlines of objects, as COCO keeps them (polygons, run lengths), painted into label maps."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hgkd_edge.data.annotations.listing import Fault, in_pixels, stated_size

__all__ = ["Shape", "outlined_size", "paint"]

MAX_OUTLINE = (
    2**21
)  # pixels that the edges of one object pass; pycocotools takes 100 bytes for each
LONGEST = 60  # bits of a run length


class Shape(NamedTuple):
    """The outline of one object.

    Attributes:
        label: Number of its class; 255 for a crowd, whose pixels are ignored.
        outline: Polygons, or run lengths, as COCO keeps them.
        where: File and line.
        normalized: Polygons whose points are shares of the photo's width and height.
    """

    label: int
    outline: Any
    where: str
    normalized: bool = False

    def in_pixels(self, size: tuple[int, int]) -> Any:
        """The outline in pixels of a photo of this height and width."""
        if not self.normalized:
            return self.outline
        height, width = size
        return [
            [n * (height if i % 2 else width) for i, n in enumerate(polygon)]
            for polygon in self.outline
        ]


def paint(shapes: list[Shape], size: tuple[int, int]) -> tuple[np.ndarray, list[Fault]]:
    """The label map of a photo of height and width `size`, uint8 [H, W], and the faults.

    Small objects are painted over large ones. Outlines are kept as run lengths until then: a map of
    each would take as much memory as the photo.
    """
    outlines, faults = [], []
    for shape in shapes:
        try:
            runs = _runs(shape.in_pixels(size), size)
        except Exception as error:  # pycocotools raises bare Exceptions
            faults.append((shape.where, f"no proper outline ({error}); skipped"))
            continue
        if area := int(runs[1::2].sum()):
            outlines.append((area, shape.label, runs))
        else:
            faults.append((shape.where, "outline has no area; skipped"))
    columns = np.zeros(size[0] * size[1], np.uint8)  # one after the other
    for _, label, runs in sorted(outlines, key=lambda outline: -outline[0]):
        ends = runs.cumsum().tolist()
        for start, end in zip(ends[::2], ends[1::2], strict=False):
            columns[start:end] = label
    return np.ascontiguousarray(columns.reshape(size[::-1]).T), faults


def outlined_size(shapes: list[Shape]) -> tuple[int, int] | None:
    """Height and width of the photo that run lengths are for; None where all are polygons."""
    for shape in shapes:
        if isinstance(shape.outline, dict) and isinstance(shape.outline.get("size"), list):
            return (
                stated_size(*shape.outline["size"][:2]) if len(shape.outline["size"]) == 2 else None
            )
    return None


def _runs(outline: Any, size: tuple[int, int]) -> np.ndarray:
    """Lengths of runs outside and inside an object in turn, column by column, int64 [n].

    Args:
        outline: As COCO keeps it.
        size: Height and width of the photo.

    Raises:
        ValueError: This is no outline on such a photo.
    """
    if not isinstance(outline, dict):
        return np.array(_polygon_runs(outline, size), np.int64)
    stated = tuple(outline.get("size", ()))
    if stated != size:  # before anything is allocated: the size may be any number
        raise ValueError(f"for a photo of size {list(stated)}, this has {list(size)}")
    runs = outline.get("counts")
    counts = runs if isinstance(runs, list) else _unpacked(runs)
    if (
        any(type(count) is not int or count < 0 for count in counts)
        or sum(counts) != size[0] * size[1]
    ):
        raise ValueError(f"run lengths do not add up to {size[1]} x {size[0]} pixels")
    return np.array(counts, np.int64)


def _unpacked(packed: Any) -> list[int]:
    """Run lengths of COCO's compressed text.

    Each is written in digits of 5 bits, the lowest first, with 32 added to all but the last and 48
    to make it printable; from the third on, as the difference to the last but one (rleFrString in
    pycocotools' maskApi.c, which takes any text for granted).

    Raises:
        ValueError: This is no such text.
    """
    if not isinstance(packed, str) or not all(48 <= ord(digit) < 48 + 64 for digit in packed):
        raise ValueError("neither polygons nor run lengths")
    counts: list[int] = []
    value = shift = 0
    for digit in (ord(character) - 48 for character in packed):
        value |= (digit & 31) << shift
        shift += 5
        if shift > LONGEST:
            raise ValueError("a run length of too many digits")
        if digit & 32:
            continue
        if digit & 16:  # the sign
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("run lengths break off")
    return counts


def _polygon_runs(outline: Any, size: tuple[int, int]) -> list[int]:
    from pycocotools import mask as coco_mask

    height, width = size
    polygons = [
        [float(number) for number in polygon]
        for polygon in (outline if isinstance(outline, list) else ())
        # Fewer than three points come of converters, beside the true polygons of an object.
        if isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
    ]
    if not polygons:
        raise ValueError("neither polygons of three points or more nor run lengths")
    far = 10 * max(size)  # pycocotools takes memory for every pixel that an edge passes
    if not all(abs(number) <= far for polygon in polygons for number in polygon):
        raise ValueError(f"points far outside the {in_pixels(size)} photo")
    if sum(map(_around, polygons)) > MAX_OUTLINE:
        raise ValueError(f"longer than {MAX_OUTLINE:,} pixels")
    runs = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return _unpacked(str(runs["counts"], "ascii"))


def _around(polygon: list[float]) -> float:
    """Pixels that a polygon's edges pass."""
    corners = np.array(polygon).reshape(-1, 2)
    return float(np.abs(np.roll(corners, -1, axis=0) - corners).max(axis=1).sum())
