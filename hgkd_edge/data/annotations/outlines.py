"""Outlines of objects in COCO's form (polygons, run lengths), painted into label maps."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hgkd_edge.data.annotations.listing import Fault, in_pixels, stated_size

__all__ = ["Shape", "outlined_size", "paint"]

MAX_OUTLINE = (
    2**21
)  # limit on pixels crossed by one object's edges; pycocotools takes 100 bytes each
LONGEST = 60  # bits of a run length


class Shape(NamedTuple):
    """The outline of one object.

    Attributes:
        label: Number of its class; 255 for a crowd, whose pixels are ignored.
        outline: Polygons, or run lengths, in COCO's form.
        where: File and line.
        normalized: Polygon points are fractions of the image's width and height.
    """

    label: int
    outline: Any
    where: str
    normalized: bool = False

    def in_pixels(self, size: tuple[int, int]) -> Any:
        """The outline in pixels of an image of this height and width."""
        if not self.normalized:
            return self.outline
        height, width = size
        return [
            [n * (height if i % 2 else width) for i, n in enumerate(polygon)]
            for polygon in self.outline
        ]


def paint(shapes: list[Shape], size: tuple[int, int]) -> tuple[np.ndarray, list[Fault]]:
    """The label map of an image of height and width `size`, uint8 [H, W], and the errors found.

    Small objects are painted over large ones. Until then, outlines are kept as run lengths: a
    separate map for each would take as much memory as the image.
    """
    outlines, faults = [], []
    for shape in shapes:
        try:
            runs = _runs(shape.in_pixels(size), size)
        except MemoryError:
            raise
        except Exception as error:  # pycocotools raises bare Exceptions
            faults.append((shape.where, f"no proper outline ({error}); skipped"))
            continue
        if area := int(runs[1::2].sum()):
            outlines.append((area, shape.label, runs))
        else:
            faults.append((shape.where, "outline has no area; skipped"))
    columns = np.zeros(size[0] * size[1], np.uint8)  # pixels, column by column
    for _, label, runs in sorted(outlines, key=lambda outline: -outline[0]):
        ends = runs.cumsum().tolist()
        for start, end in zip(ends[::2], ends[1::2], strict=False):
            columns[start:end] = label
    return np.ascontiguousarray(columns.reshape(size[::-1]).T), faults


def outlined_size(shapes: list[Shape]) -> tuple[int, int] | None:
    """Height and width of the image that run lengths are for; None if all are polygons."""
    for shape in shapes:
        if isinstance(shape.outline, dict) and isinstance(shape.outline.get("size"), list):
            return (
                stated_size(*shape.outline["size"][:2]) if len(shape.outline["size"]) == 2 else None
            )
    return None


def _runs(outline: Any, size: tuple[int, int]) -> np.ndarray:
    """Alternating lengths of runs outside and inside an object, column by column, int64 [n].

    Args:
        outline: In COCO's form.
        size: Height and width of the image.

    Raises:
        ValueError: The outline does not fit the image.
    """
    if not isinstance(outline, dict):
        return np.array(_polygon_runs(outline, size), np.int64)
    stated = tuple(outline.get("size", ()))
    if stated != size:  # before anything is allocated: the size may be any number
        raise ValueError(f"for an image of size {list(stated)}, this has {list(size)}")
    runs = outline.get("counts")
    counts = runs if isinstance(runs, list) else _unpacked(runs)
    if (
        any(type(count) is not int or count < 0 for count in counts)
        or sum(counts) != size[0] * size[1]
    ):
        raise ValueError(f"run lengths do not add up to {size[1]} x {size[0]} pixels")
    return np.array(counts, np.int64)


def _unpacked(packed: Any) -> list[int]:
    """Run lengths decoded from COCO's compressed text.

    Each number is written in digits of 5 bits, lowest first. All digits except the last have 32
    added, and 48 is added to make them printable. From the third number on, the difference to the
    last but one is stored (rleFrString in pycocotools' maskApi.c, which does not check its input).

    Raises:
        ValueError: The text is not in this format.
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
        # Converters leave polygons of fewer than three points next to an object's real polygons.
        if isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
    ]
    if not polygons:
        raise ValueError("neither polygons of three points or more nor run lengths")
    far = 10 * max(size)  # pycocotools uses memory for every pixel that an edge crosses
    if not all(abs(number) <= far for polygon in polygons for number in polygon):
        raise ValueError(f"points far outside the {in_pixels(size)} image")
    if sum(map(_around, polygons)) > MAX_OUTLINE:
        raise ValueError(f"longer than {MAX_OUTLINE:,} pixels")
    runs = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return _unpacked(str(runs["counts"], "ascii"))


def _around(polygon: list[float]) -> float:
    """Number of pixels that a polygon's edges cross."""
    corners = np.array(polygon).reshape(-1, 2)
    return float(np.abs(np.roll(corners, -1, axis=0) - corners).max(axis=1).sum())
