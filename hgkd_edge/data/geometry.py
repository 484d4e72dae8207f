"""From a photo to the canvas that a network sees, and the way back. PIL and numpy, no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

__all__ = [
    "IGNORED",
    "PAD",
    "Geometry",
    "Placement",
    "cover",
    "letterbox",
    "place",
    "row_blocks",
    "scale_to_8",
    "to_rgb",
]

Geometry = Literal["cover", "letterbox"]
BILINEAR = Image.Resampling.BILINEAR  # Pillow's filters are antialiased
LONGEST = 8  # times the canvas: what a resized image may take before it is cut

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
    if image.mode == "RGB":
        image.load()  # Pillow's conversion would copy it
        return image
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
    fitted = _scaled(original, canvas)
    height, width = (max(1, min(f, c)) for f, c in zip(fitted, canvas, strict=True))
    return Placement(original, (height, width))


def letterbox(
    image: Image.Image,
    canvas: tuple[int, int],
    *,
    fill: int = PAD,
    resample: Image.Resampling = BILINEAR,
) -> Image.Image:
    """The canvas with the whole image on it, scaled as `place` says, `fill` around it.

    Classification cuts an overhang off (`cover`); here every object must stay in the picture.
    """
    height, width = place((image.height, image.width), canvas).placed
    color = (fill,) * len(image.getbands())
    whole = Image.new(image.mode, (canvas[1], canvas[0]), color if len(color) > 1 else fill)
    whole.paste(image.resize((width, height), resample), (0, 0))
    return whole


def cover(
    image: Image.Image, canvas: tuple[int, int], *, resample: Image.Resampling = BILINEAR
) -> Image.Image:
    """Resize so that the image covers the canvas, and cut out the center.

    The same pixels as torchvision's `Resize(side)` and `CenterCrop(side)`, for a square canvas.
    """
    height, width = canvas
    scaled = _scaled((image.height, image.width), canvas)
    tall, wide = (max(s, c) for s, c in zip(scaled, canvas, strict=True))
    top, left = round((tall - height) / 2), round((wide - width) / 2)
    if tall * wide <= LONGEST * height * width:
        whole = image.resize((wide, tall), resample)
        return whole.crop((left, top, left + width, top + height))
    # Only the part that is kept, equal but for rounding: the whole of a 1 x 60,000 image is 9 GB.
    rows, columns = image.height / tall, image.width / wide  # source pixels per resized pixel
    # Pillow refuses a box that rounding has put a hair outside the image.
    right = min(image.width, (left + width) * columns)
    bottom = min(image.height, (top + height) * rows)
    return image.resize((width, height), resample, box=(left * columns, top * rows, right, bottom))


def _scaled(original: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """Each side where the *other* side fits the canvas exactly, in whole pixels rounded down.

    The larger of this and the canvas covers it, the smaller fits inside. Whole numbers, so that
    every implementation rounds alike.
    """
    (height, width), (rows, columns) = original, canvas
    return height * columns // width, width * rows // height
