"""Which orientation an annotation is for, if EXIF data turn its image.

Most tools annotate the upright image that viewers show; some count pixels as stored. The size
stated in an annotation distinguishes the two if the turn swaps width and height. Otherwise the
other images of the data set decide. If they cannot, the annotation is taken to be for the upright
image. Annotations of stored pixels are turned, so that training sees every image upright, as
`predict` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hgkd_edge.cells import counted
from hgkd_edge.data.annotations.listing import Box, Fault, checked_boxes, in_pixels
from hgkd_edge.data.orientation import Turn

__all__ = ["Turns", "meant_upright", "size_of", "upright_boxes"]

Size = tuple[int, int]  # height and width


def meant_upright(
    turn: Turn, stated: Size | None, *, by: str = "its annotations are for"
) -> bool | None:
    """Whether an annotation is for the upright image, by its stated size; None: cannot tell.

    Args:
        turn: Of the image.
        stated: Height and width, if the annotation states them.
        by: What states them, for the message.

    Raises:
        ValueError: The annotation is for an image of another size.
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
        upright: Whether the boxes are for the upright image, rather than for the stored image.
    """
    kept, faults = checked_boxes(boxes, classes, size_of(turn, upright=upright))
    if not upright:
        kept[:, 1:] = turn.apply_to_boxes(kept[:, 1:])
    return kept, faults


@dataclass
class Turns:
    """How the annotations of turned images are interpreted in a data set.

    Attributes:
        upright: Number of images whose annotation is for the upright image, by its size.
        stored: Number of images whose annotation is for the image as stored, by its size.
        unstated: Number of turned images whose annotation does not state a usable size.
    """

    upright: int = 0
    stored: int = 0
    unstated: int = 0

    def count(self, upright: bool | None) -> None:
        """Count a turned image by what its annotation states."""
        self.upright += upright is True
        self.stored += upright is False
        self.unstated += upright is None

    @property
    def default(self) -> bool:
        """Whether an image whose annotation does not tell is treated as upright."""
        return self.upright >= self.stored

    def remark(self) -> str:
        """What was decided, in one line; '' if no image is turned."""
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
        turned = f"{counted(total, 'image')} turned by EXIF orientation"
        return f"{turned}: annotated {taken}" if total else ""
