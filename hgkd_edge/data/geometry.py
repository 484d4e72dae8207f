"""From a photo to the canvas that a network sees, and the way back. PIL and numpy, no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

__all__ = [
    "IGNORED",
    "PAD",
    "Placement",
    "cover",
    "letterbox",
    "place",
    "row_blocks",
    "scale_to_8",
    "to_rgb",
]

PAD = 114  # grey of what a photo does not cover: near the mean that networks subtract
ROWS = 64  # of an image that are worked on at a time
IGNORED = 255  # of a label map: no class is given here, or here is no photo


def to_rgb(image: Image.Image, *, bits: int = 16) -> Image.Image:
    """An image of any mode as 8-bit RGB.

    Pixels of 16 bits are scaled by the largest number of `bits` bits, floats by 1: Pillow's own
    conversion cuts both off instead, to all white or all black.

    Raises:
        ValueError: Wider pixels hold values outside `bits` bits, or floats values outside 0 to 1.
    """
    if not image.mode.startswith(("I", "F")):
        return image.convert("RGB")
    highest = 1 if image.mode == "F" else 2**bits - 1
    return Image.fromarray(scale_to_8(np.asarray(image), highest)).convert("RGB")


def scale_to_8(pixels: np.ndarray, highest: int) -> np.ndarray:
    """Pixels from 0 to `highest`, [H, W, ...], as uint8 from 0 to 255.

    Raises:
        ValueError: A pixel lies outside.
    """
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= highest):  # so put, NaN is refused too
        kind = "float" if pixels.dtype.kind == "f" else "whole-number"
        more = f"; set data.bits to {int(high).bit_length()}" if 1 < highest < high < 2**16 else ""
        raise ValueError(
            f"{kind} pixels from {low:g} to {high:g}: can be 0 to {highest} only{more}"
        )
    scaled = np.empty(pixels.shape, np.uint8)
    for rows in row_blocks(pixels):  # floats of all would take 8 times the memory
        scaled[rows] = np.round(pixels[rows] * (255 / highest))
    return scaled


def row_blocks(pixels: np.ndarray) -> Iterator[slice]:
    """The rows of an image in blocks, for work that needs much more memory than the image."""
    yield from (slice(top, top + ROWS) for top in range(0, len(pixels), ROWS))


@dataclass(frozen=True)
class Placement:
    """A photo scaled to fit a canvas, in its top left corner, nothing cut off.

    The scale is one number for both axes (a cell stays round, whatever the photo's shape), so a
    photo of another shape than the canvas leaves a margin at the right or at the bottom.

    Attributes:
        original: Height and width of the photo in pixels.
        placed: Height and width that it takes on the canvas.
    """

    original: tuple[int, int]
    placed: tuple[int, int]

    def to_canvas(self, boxes: np.ndarray) -> np.ndarray:
        """x1, y1, x2, y2 in the photo's pixels -> in the canvas's, float32 [..., 4]."""
        return (boxes * self._scale()).astype(np.float32)

    def to_original(self, boxes: np.ndarray) -> np.ndarray:
        """x1, y1, x2, y2 in the canvas's pixels -> in the photo's, cut at its edges."""
        height, width = self.original
        return np.clip(boxes / self._scale(), 0, (width, height, width, height)).astype(np.float32)

    def _scale(self) -> np.ndarray:
        rows, columns = (p / o for p, o in zip(self.placed, self.original, strict=True))
        return np.array((columns, rows, columns, rows))


def place(original: tuple[int, int], canvas: tuple[int, int]) -> Placement:
    """Where a photo of height and width `original` lies on a canvas of height and width."""
    scale = min(c / o for c, o in zip(canvas, original, strict=True))
    height, width = (max(1, round(side * scale)) for side in original)
    return Placement(original, (min(height, canvas[0]), min(width, canvas[1])))


def letterbox(
    image: Image.Image,
    canvas: tuple[int, int],
    *,
    fill: int = PAD,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """The canvas with the whole image on it, scaled as `place` says, `fill` around it.

    Classification cuts an overhang off (`cover`); here every object must stay in the picture.
    """
    height, width = place((image.height, image.width), canvas).placed
    colour = (fill,) * len(image.getbands())
    whole = Image.new(image.mode, (canvas[1], canvas[0]), colour if len(colour) > 1 else fill)
    whole.paste(image.resize((width, height), resample), (0, 0))
    return whole


def cover(image: Image.Image, canvas: tuple[int, int]) -> Image.Image:
    """Resize so that the image covers the canvas, and cut the overhang evenly."""
    height, width = canvas
    scale = max(height / image.height, width / image.width)
    box_width, box_height = width / scale, height / scale
    # PIL refuses a box that rounding has put a hair outside the image.
    left = max(0.0, (image.width - box_width) / 2)
    top = max(0.0, (image.height - box_height) / 2)
    right, bottom = min(image.width, left + box_width), min(image.height, top + box_height)
    box = (left, top, right, bottom)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)
