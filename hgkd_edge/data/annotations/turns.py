"""Which way up an annotated photo is meant, where its EXIF data turn it.

Most tools annotate what viewers show, the upright image; some count pixels as stored. The size that
an annotation states tells them apart where the turn swaps width and height. Where it cannot tell,
the other photos of the data set decide; where they cannot either, it is taken to be for the upright
image. Annotations of the stored pixels are turned along, so that training sees every image upright,
as `predict` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hgkd_edge.data.annotations.listing import Box, Fault, checked_boxes, in_pixels
from hgkd_edge.data.images import Turn

__all__ = ["Turns", "meant_upright", "size_of", "upright_boxes"]

Size = tuple[int, int]  # height and width


def meant_upright(
    turn: Turn, stated: Size | None, *, by: str = "its annotations are for"
) -> bool | None:
    """Whether an annotation is for the upright image, by the size that it states; None: either.

    Args:
        turn: Of the image.
        stated: Height and width, if the annotation states them.
        by: What states them, for the message.

    Raises:
        ValueError: It is for an image of another size.
    """
    if stated is None:
        return None
    fits = {upright for upright in (True, False) if stated == size_of(turn, upright=upright)}
    if not fits:
        turned = f" ({in_pixels(turn.stored)} before EXIF turns it)"
        raise ValueError(
            f"has {in_pixels(turn.upright)} pixels{turned if turn.orientation > 1 else ''}, "
            f"{by} {in_pixels(stated)}"
        )
    return fits.pop() if len(fits) == 1 else None


def size_of(turn: Turn, *, upright: bool) -> Size:
    """Height and width of the image, upright or as stored."""
    return turn.upright if upright else turn.stored


def upright_boxes(
    boxes: Sequence[Box], classes: Sequence[str], turn: Turn, *, upright: bool
) -> tuple[np.ndarray, list[Fault]]:
    """Boxes in pixels of the upright image, as `checked_boxes` gives them.

    Args:
        boxes: Of one image.
        classes: Names, in the order of their numbers.
        turn: Of the image.
        upright: Whether the boxes are for the upright image, rather than for the stored one.
    """
    kept, faults = checked_boxes(boxes, classes, size_of(turn, upright=upright))
    if not upright:
        kept[:, 1:] = turn.apply_to_boxes(kept[:, 1:])
    return kept, faults


@dataclass
class Turns:
    """How the annotations of turned photos are meant, over a data set.

    Attributes:
        upright: Number of photos whose annotation is for the upright image, by its size.
        stored: Number of those that are for the image as stored.
        unstated: Number of turned photos whose annotation does not tell.
    """

    upright: int = 0
    stored: int = 0
    unstated: int = 0

    def count(self, upright: bool | None) -> None:
        """Take in a turned photo, by what its annotation tells."""
        self.upright += upright is True
        self.stored += upright is False
        self.unstated += upright is None

    @property
    def default(self) -> bool:
        """Whether a turned photo is taken upright where its annotation does not tell."""
        return self.upright >= self.stored

    def remark(self) -> str:
        """What was decided, in one line; '' if no photo is turned."""
        counts = {
            f"{self.upright} upright and {self.stored} as stored, by their annotations' size": (
                self.upright + self.stored
            ),
            f"{self.unstated} {'upright' if self.default else 'as stored'}, "
            + ("like the others" if self.upright != self.stored else "as viewers show them"): (
                self.unstated
            ),
        }
        taken = "; ".join(text for text, count in counts.items() if count)
        total = self.upright + self.stored + self.unstated
        return f"{total} images are turned by EXIF orientation: annotated {taken}" if total else ""
