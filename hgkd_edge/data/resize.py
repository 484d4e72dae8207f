"""From an image to the canvas that a network sees, and back. PIL and numpy, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

__all__ = ["IGNORED", "PAD", "Geometry", "Placement", "cover", "letterbox", "place"]

Geometry = Literal["cover", "letterbox"]
BILINEAR = Image.Resampling.BILINEAR  # Pillow's filters are antialiased
LONGEST = 8  # limit on a resized image before cropping, in multiples of the canvas

PAD = 114  # gray of the margin around an image: near the mean that networks subtract
IGNORED = 255  # in label maps: no class, or outside the image


@dataclass(frozen=True)
class Placement:
    """An image scaled to fit a canvas, in its top left corner, without cropping.

    Both axes use the same scale, so shapes are preserved (a round cell stays round). An image whose
    aspect ratio differs from the canvas leaves a margin at the right or at the bottom.

    Attributes:
        original: Height and width of the image in pixels.
        placed: Height and width on the canvas.
    """

    original: tuple[int, int]
    placed: tuple[int, int]

    def to_canvas(self, boxes: np.ndarray) -> np.ndarray:
        """x1, y1, x2, y2 in image pixels -> in canvas pixels, float32 [..., 4]."""
        return (boxes * self._scale()).astype(np.float32)

    def to_original(self, boxes: np.ndarray) -> np.ndarray:
        """x1, y1, x2, y2 in canvas pixels -> in image pixels, clipped to the image."""
        height, width = self.original
        return np.clip(boxes / self._scale(), 0, (width, height, width, height)).astype(np.float32)

    def _scale(self) -> np.ndarray:
        rows, columns = (p / o for p, o in zip(self.placed, self.original, strict=True))
        return np.array((columns, rows, columns, rows))


def place(original: tuple[int, int], canvas: tuple[int, int]) -> Placement:
    """Where an image of height and width `original` lies on a canvas of height and width."""
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
    """The canvas with the whole image on it, scaled as `place` states, `fill` around it.

    Classification crops the overhang (`cover`); here every object must stay in the image.
    """
    height, width = place((image.height, image.width), canvas).placed
    color = (fill,) * len(image.getbands())
    whole = Image.new(image.mode, (canvas[1], canvas[0]), color if len(color) > 1 else fill)
    whole.paste(image.resize((width, height), resample), (0, 0))
    return whole


def cover(
    image: Image.Image, canvas: tuple[int, int], *, resample: Image.Resampling = BILINEAR
) -> Image.Image:
    """Resize so that the image covers the canvas, and crop the center.

    Same pixels as torchvision's `Resize(side)` and `CenterCrop(side)`, for a square canvas.
    """
    height, width = canvas
    scaled = _scaled((image.height, image.width), canvas)
    tall, wide = (max(s, c) for s, c in zip(scaled, canvas, strict=True))
    top, left = round((tall - height) / 2), round((wide - width) / 2)
    if tall * wide <= LONGEST * height * width:
        whole = image.resize((wide, tall), resample)
        return whole.crop((left, top, left + width, top + height))
    # Resize only the part that is kept: equal except rounding. A 1 x 60,000 image would take 9 GB.
    rows, columns = image.height / tall, image.width / wide  # source pixels per resized pixel
    # Pillow refuses a box that rounding moved slightly outside the image.
    right = min(image.width, (left + width) * columns)
    bottom = min(image.height, (top + height) * rows)
    return image.resize((width, height), resample, box=(left * columns, top * rows, right, bottom))


def _scaled(original: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """Each side if the *other* side fits the canvas exactly, in whole pixels rounded down.

    The larger of this and the canvas covers it, the smaller fits inside. Integer arithmetic makes
    every implementation round alike.
    """
    (height, width), (rows, columns) = original, canvas
    return height * columns // width, width * rows // height
