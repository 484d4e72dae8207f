"""Image files: plain ones, those that Pillow cannot write, and what is no file of images."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

PHOTO = np.full((40, 40, 3), 128, np.uint8)

COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # of PNG, by number of channels


def png(pixels: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of 16-bit pixels [H, W] or [H, W, channels], with more chunks before them."""
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    header = struct.pack(">IIBBBBB", width, height, 16, COLOR_TYPES[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    every = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in every)


def _chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def tiff(pixels: np.ndarray, *, bits: int = 16, maximum: int | None = None) -> bytes:
    """A TIFF file of pixels [H, W] or [H, W, 3]; `bits` below 16 are packed without gaps."""
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if bits == 16:
        data = pixels.astype("<u2").tobytes()
    else:
        rows = ["".join(format(int(value), f"0{bits}b") for value in row) for row in pixels]
        data = b"".join(_packed(row) for row in rows)
    tags = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, channels, bits),
        (259, 3, 1, 1),
        (262, 3, 1, 2 if channels == 3 else 1),
        (273, 4, 1, 16),
        (277, 3, 1, channels),
        (278, 3, 1, height),
        (279, 4, 1, len(data)),
    ]
    if channels == 3:
        tags[2] = (258, 3, 3, 8)  # offset of the three numbers
    if maximum is not None:
        tags.append((281, 3, 1, maximum))
    directory = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", *tag) for tag in sorted(tags)
    )
    start = struct.pack("<HHHH", bits, bits, bits, 0)
    return b"II*\0" + struct.pack("<I", 16 + len(data)) + start + data + directory + b"\0\0\0\0"


def _packed(bits: str) -> bytes:
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def damaged_exif(image: Image.Image, orientation: int, *, where: str) -> bytes:
    """A JPEG file that opens, with damage in its EXIF data.

    Args:
        image: Its pixels, as stored.
        orientation: As its EXIF data say.
        where: `model` (a text that claims to be a fraction), `orientation` (which claims to be a
            text), `offset` (the data point behind their end) or `header`.
    """
    exif = Image.Exif()
    exif[0x0112], exif[0x0110] = orientation, "model"
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif.tobytes(), quality=95)
    raw = bytearray(buffer.getvalue())
    start = raw.index(b"Exif\0\0") + 6
    order = "<" if raw[start : start + 2] == b"II" else ">"
    if where == "header":
        raw[start : start + 4] = b"\xff\xff\xff\xff"
    if where == "offset":
        raw[start + 4 : start + 8] = struct.pack(f"{order}I", 50_000)
    (count,) = struct.unpack_from(f"{order}H", raw, start + 8)
    for place in (start + 10 + 12 * i for i in range(count)):
        (tag,) = struct.unpack_from(f"{order}H", raw, place)
        if where == "model" and tag == 0x0110:
            struct.pack_into(f"{order}HII", raw, place + 2, 5, 1, 8)
        if where == "orientation" and tag == 0x0112:
            struct.pack_into(f"{order}HI", raw, place + 2, 2, 3)
    return bytes(raw)


def save_image(file: Path, pixels: np.ndarray = PHOTO) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return file


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")
