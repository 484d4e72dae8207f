"""Image files: accepted formats, size limits, orientation.

Every reader of images opens them through this module: training images, masks, calibration images,
`predict`. PIL and numpy, no torch.
"""

from __future__ import annotations

import contextlib
import io
import math
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from hgkd_edge.parsing import read_file

__all__ = [
    "FORMATS",
    "MAX_FILE_BYTES",
    "MAX_PIXELS",
    "open_image",
    "read_image_file",
    "require_size",
]

# Accepted formats, detected by content, whatever the file name says. All others are refused:
# Pillow would start Ghostscript for an EPS file, and its rare decoders are little tested.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_FILE_BYTES = 2**29  # of one image file
MAX_PIXELS = 2**27  # of one image: about 1 GB of memory while it is decoded, 2 GB as WebP
MAX_PASSES = 2**31  # pixels times scans of a progressive JPEG: each scan goes over the whole image
LARGE = 2**26  # pixels of an image above which a process decodes one at a time

# Damaged tags, of EXIF data too: reported by file instead.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is `MAX_PIXELS`
_ONE_AT_A_TIME = threading.RLock()  # one thread may open an image again while it holds it
MARKER, SCAN = 0xFF, 0xDA  # start of a JPEG scan; in pixel data, 0xff is followed by zero
SCAN_BYTES = 10  # of the shortest header of a scan


@contextlib.contextmanager
def open_image(source: Path | bytes) -> Iterator[ImageFile.ImageFile]:
    """An image file's first frame, not decoded yet. All image files are opened here.

    Args:
        source: The file's path, or its content.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a regular file, not in a format of `FORMATS`, or too large.
    """
    content = source if isinstance(source, bytes) else read_image_file(source)
    with _opened(content) as image:
        width, height = max(image.size, _tile_size(image), key=math.prod)
        if (pixels := width * height) > MAX_PIXELS:
            raise _too_many_pixels(f"{width} x {height}")
        most = MAX_PASSES // max(1, pixels)
        if image.format in ("JPEG", "MPO") and (scans := _scans(content, most)) > most:
            raise ValueError(f"has {scans:,} scans, which would take very long to decode")
        with _ONE_AT_A_TIME if pixels > LARGE else contextlib.nullcontext():
            yield image


def read_image_file(file: Path) -> bytes:
    """The bytes of a file that may be an image; it must be a regular file of limited size.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not a regular file, is empty, or is larger than `MAX_FILE_BYTES`.
    """
    content = read_file(file, MAX_FILE_BYTES, kind="image")
    if not content:
        raise ValueError("is empty")
    return content


def require_size(size: int) -> None:
    """Refuse an image file larger than `MAX_FILE_BYTES`, before it is read.

    Raises:
        ValueError: The file is larger.
    """
    if size > MAX_FILE_BYTES:
        raise ValueError(f"has {size:,} bytes; image files are read up to {MAX_FILE_BYTES:,}")


@contextlib.contextmanager
def _opened(content: bytes) -> Iterator[ImageFile.ImageFile]:
    """The image opened by Pillow, with this package's error messages."""
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]  # AVIF support is optional in Pillow
    try:
        image = Image.open(io.BytesIO(content), formats=formats)
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(str(error)) from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"not an image of a known format ({', '.join(formats)})") from error
    with image:
        yield image


def _scans(content: bytes, enough: int) -> int:
    """How many scans a JPEG has; 0 if it is too short for `enough` of them."""
    if len(content) < enough * SCAN_BYTES:
        return 0
    # By numpy: `bytes.count` takes a tenth of the decoder's time.
    values = np.frombuffer(content, np.uint8)
    return int(np.count_nonzero(values[np.flatnonzero(values[:-1] == MARKER) + 1] == SCAN))


def _too_many_pixels(size: str) -> ValueError:
    return ValueError(f"too many pixels ({size}); images are decoded up to {MAX_PIXELS:,}")


def _tile_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the tiles that a TIFF file is decoded in; they may exceed the image."""
    tags = getattr(image, "tag_v2", {})
    return int(tags.get(322, 0)), int(tags.get(323, 0))
