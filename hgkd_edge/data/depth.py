"""16-bit image files: how many of the bits carry the image, and how they are scaled to 8.

Cameras write 10, 12 or 14 bits into 16-bit files. Read as full 16-bit, such images are nearly
black.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile

from hgkd_edge.data.color import row_blocks, scale_to_8, to_rgb
from hgkd_edge.data.images import MAX_PIXELS, open_image
from hgkd_edge.data.orientation import Turn, turn_of
from hgkd_edge.data.spread import evenly
from hgkd_edge.errors import raise_if_out_of_memory

__all__ = ["Depth", "decode_rgb", "depth_of", "settle_bits", "settled_bits"]

SAMPLE = 64  # files of a data set whose pixels are checked
DEPTHS = (8, 10, 12, 14, 16)
EIGHT_BITS = (".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".bmp", ".gif", ".avif")
# Pillow keeps the high byte of 16-bit color. With the byte order swapped, it keeps the low byte.
OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


class Depth(NamedTuple):
    """What one 16-bit file shows about the bits it uses.

    Attributes:
        highest: Its highest pixel.
        stated: Bits that the file claims to use (PNG's sBIT, TIFF's MaxSampleValue), or 0.
    """

    highest: int
    stated: int


class Settled(NamedTuple):
    """Bits of a data set's 16-bit files (0: none), and a description of how they were found."""

    bits: int
    why: str = ""


def settled_bits(
    read: Callable[[int], bytes], names: Sequence[str], setting: str | int, *, threads: int
) -> Settled:
    """Bits used by the 16-bit files of a data set: from the setting, else from a sample of files.

    All files use the same scale. Scaling each image by its own highest pixel would change its
    brightness relative to the others.

    Args:
        read: Returns the bytes of file i.
        names: File names.
        setting: `data.bits`.
        threads: Number of files read at a time.
    """
    if isinstance(setting, int):
        return Settled(setting)
    deep = [i for i, name in enumerate(names) if not name.lower().endswith(EIGHT_BITS)]
    chosen = [deep[i] for i in evenly(len(deep), SAMPLE)]

    def look(i: int) -> Depth | None:
        try:
            return depth_of(read(i))
        except Exception as error:  # a broken file is reported when it is decoded
            raise_if_out_of_memory(error, names[i])
            return None

    with ThreadPoolExecutor(threads) as pool:
        found = [depth for depth in pool.map(look, chosen) if depth is not None]
    if not found:
        return Settled(0)
    bits = settle_bits(found)
    if bits == 16:
        return Settled(16)
    highest = max(depth.highest for depth in found)
    return Settled(
        bits,
        f"16-bit images use {bits} bits (the highest pixel of {len(found)} images is {highest}) "
        "and are scaled accordingly; data.bits=16 takes them as they are",
    )


def settle_bits(found: Iterable[Depth]) -> int:
    """The bits used by all these files: as stated if the pixels agree, else by pixel range.

    PNG's sBIT states how many bits the camera had. By the standard, the samples are still scaled up
    to 16 bits, which shows in pixels beyond those bits.
    """
    depths = list(found)
    highest, stated = (max(column) for column in zip(*depths, strict=True))
    if highest == 0:
        return 16
    if all(depth.stated for depth in depths) and highest < 2**stated:
        return int(stated)
    return next((bits for bits in DEPTHS if highest < 2**bits), 16)


def depth_of(content: bytes) -> Depth | None:
    """What a file shows about its bits; None if 8-bit or if its bit depth is certain."""
    with open_image(content) as image:
        if _packed_bits(image) or not (image.mode.startswith("I") or _color_order(image)):
            return None
        if image.mode.startswith("I"):
            if image.format == "PPM":  # Pillow scales these by the maximum that they state
                return Depth(2**16 - 1, 16)
            pixels: np.ndarray | None = np.asarray(image)
        else:
            pixels = _color_pixels(image, content, turn_of(image))
        if pixels is None:
            return None
        highest = int(pixels.max())
        return Depth(highest, min(_stated_bits(image, content), 16)) if highest < 2**16 else None


def decode_rgb(
    image: ImageFile.ImageFile, content: bytes, turn: Turn, *, bits: int = 0
) -> Image.Image:
    """An opened image as 8-bit RGB, upright.

    Args:
        image: Opened from `content`; not decoded yet.
        content: The file.
        turn: From `turn_of`.
        bits: Bits used by 16-bit files; 0: all 16. Ignored if the file reliably states its own.

    Raises:
        ValueError: The pixels need more bits.
    """
    bits = _packed_bits(image) or bits or 16
    if bits < 16 and image.format in ("PNG", "TIFF"):
        pixels = _color_pixels(image, content, turn)
        if pixels is not None:
            return Image.fromarray(scale_to_8(pixels, 2**bits - 1))
    return to_rgb(turn.apply(image), bits=bits)


def _packed_bits(image: Image.Image) -> int:
    """Bits per sample of a TIFF file with packed samples; 0 for whole bytes."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(258, (0,))[0]
    return int(bits) if 8 < bits < 16 else 0


def _stated_bits(image: ImageFile.ImageFile, content: bytes) -> int:
    if image.format == "TIFF":
        stated = image.tag_v2.get(281, 0)  # type: ignore[attr-defined]
        highest = max(stated) if isinstance(stated, tuple) else stated
        return int(highest).bit_length()
    header = content[: content.find(b"IDAT")]  # sBIT comes before the pixels
    place = header.find(b"sBIT")
    if image.format != "PNG" or place < 4:
        return 0
    length = int.from_bytes(header[place - 4 : place], "big")
    return max(header[place + 4 : place + 4 + length], default=0)


def _color_order(image: ImageFile.ImageFile) -> str:
    """Byte order of 16-bit color samples (B, L or N); '' for all other images."""
    if not image.tile or image.mode not in ("RGB", "RGBA", "RGBX"):
        return ""
    mode, mark, order = _raw_mode(image).partition(";16")
    return order if mark and mode.startswith(("RGB", "LA")) else ""


def _raw_mode(image: ImageFile.ImageFile) -> str:
    parameters: Any = image.tile[0][3]
    raw = parameters[0] if isinstance(parameters, tuple) else parameters
    return raw if isinstance(raw, str) else ""


def _color_pixels(image: Image.Image, content: bytes, turn: Turn) -> np.ndarray | None:
    """All 16 bits of a color image, uint16 [H, W, 3]; None for all other images."""
    with open_image(content) as other:  # decoding changes the image's recorded mode
        if not (order := _color_order(other)):
            return None
        if 2 * other.width * other.height > MAX_PIXELS:  # both bytes are decoded
            raise ValueError(
                f"too many pixels for 16-bit color; up to {MAX_PIXELS // 2:,} are read"
            )
        swapped = _raw_mode(other).replace(f";16{order}", f";16{OTHER_ORDER[order]}")
        other.tile = [_with_raw_mode(tile, swapped) for tile in other.tile]
        low = np.asarray(turn.apply(other))
    high = np.asarray(turn.apply(image))
    pixels = np.empty((*high.shape[:2], 3), np.uint16)
    for rows in row_blocks(pixels):
        pixels[rows] = high[rows, :, :3].astype(np.uint16) * 256 + low[rows, :, :3]
    return pixels


def _with_raw_mode(tile: Any, raw: str) -> Any:
    """The same tile of an image, with another sample byte order."""
    codec, extents, offset, parameters = tile
    changed = raw if isinstance(parameters, str) else (raw, *parameters[1:])
    values = (codec, extents, offset, changed)
    return type(tile)(*values) if hasattr(tile, "_fields") else values  # by Pillow's version
