"""Images of any mode and depth as 8-bit RGB."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

__all__ = ["ROWS", "row_blocks", "scale_to_8", "to_rgb"]

ROWS = 64  # image rows processed at a time


def to_rgb(image: Image.Image, *, bits: int = 16) -> Image.Image:
    """An image of any mode as 8-bit RGB.

    16-bit pixels are scaled by the largest `bits`-bit number, floats by 1. Pillow's own conversion
    clips both instead, to all white or all black.

    Raises:
        ValueError: 16-bit pixels exceed `bits` bits, or floats lie outside 0 to 1.
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
        ValueError: A pixel is out of range.
    """
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= highest):  # written so that NaN is refused too
        kind = "float" if pixels.dtype.kind == "f" else "whole-number"
        more = f"; set data.bits to {int(high).bit_length()}" if 1 < highest < high < 2**16 else ""
        raise ValueError(
            f"{kind} pixels from {low:g} to {high:g}: can be 0 to {highest} only{more}"
        )
    scaled = np.empty(pixels.shape, np.uint8)
    for rows in row_blocks(pixels):  # converting all at once would take 8 times the memory
        scaled[rows] = np.round(pixels[rows] * (255 / highest))
    return scaled


def row_blocks(pixels: np.ndarray) -> Iterator[slice]:
    """The rows of an image in blocks, for work that needs much more memory than the image."""
    yield from (slice(top, top + ROWS) for top in range(0, len(pixels), ROWS))
