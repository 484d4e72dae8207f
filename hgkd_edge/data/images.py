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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from hgkd_edge.parsing import read_file

__all__ = [
    "FORMATS",
    "MAX_FILE_BYTES",
    "MAX_PIXELS",
    "Turn",
    "open_image",
    "read_image_file",
    "require_size",
    "turn_of",
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
ORIENTATION = 0x0112  # the EXIF tag
_ONE_AT_A_TIME = threading.RLock()  # one thread may open an image again while it holds it
MARKER, SCAN = 0xFF, 0xDA  # start of a JPEG scan; in pixel data, 0xff is followed by zero
SCAN_BYTES = 10  # of the shortest header of a scan
EMPTY_EXIF = 20  # bytes of EXIF data without any tag
# The operation that brings an image upright, by EXIF orientation.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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


@dataclass(frozen=True)
class Turn:
    """The orientation in which an image is displayed, from EXIF.

    Attributes:
        orientation: 1 (as stored) to 8.
        stored: Height and width as stored.
        fault: What is wrong with its EXIF data; '' if nothing is.
    """

    orientation: int
    stored: tuple[int, int]
    fault: str = ""

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of the displayed image."""
        return self.stored[::-1] if self.orientation >= 5 else self.stored

    def draft(self, image: Image.Image, near: tuple[int, int]) -> None:
        """Let a JPEG be decoded at a coarser scale, but not below the height and width `near`."""
        swap = self.orientation >= 5
        image.draft("RGB", near if swap else near[::-1])  # Pillow puts the width first

    def apply(self, image: Image.Image) -> Image.Image:
        """The image upright, decoded.

        Args:
            image: The image that was given to `turn_of`, possibly drafted since, or another image
                with the same pixels, such as a label map.
        """
        if self.orientation == 1:
            return image
        image.load()
        # Pillow turns TIFF images upright while decoding, and removes the tag.
        if image.format == "TIFF" and _orientation(image) == 1:
            return image
        return image.transpose(UPRIGHT[self.orientation])

    def apply_to_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes x1, y1, x2, y2 in the image as stored -> in the upright image, [M, 4]."""
        height, width = self.stored
        x, y = boxes[:, 0::2], boxes[:, 1::2]  # [M, 2] each
        if self.orientation in (2, 3, 7, 8):
            x = width - x[:, ::-1]
        if self.orientation in (3, 4, 6, 7):
            y = height - y[:, ::-1]
        if self.orientation >= 5:
            x, y = y, x
        return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)


def turn_of(image: Image.Image) -> Turn:
    """The EXIF orientation of an opened image; damaged EXIF data do not make it unusable.

    Unreadable data are treated as absent. If other tags are damaged, the orientation still counts.
    """
    size = _stored_size(image)
    try:
        orientation = _orientation(image)
    except Exception as error:  # damaged tags raise almost anything
        return Turn(1, size, f"damaged EXIF data ({error or type(error).__name__}); used as stored")
    if orientation not in UPRIGHT:
        known = orientation in (0, 1)
        fault = _unread(image) if known else f"EXIF orientation {orientation!r}; used as stored"
        return Turn(1, size, fault)
    return Turn(orientation, size, _damage(image))


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


def _stored_size(image: Image.Image) -> tuple[int, int]:
    tags = getattr(image, "tag_v2", None)  # TIFF only; newer Pillow reports the upright size
    if tags is None:
        return image.height, image.width
    return int(tags[257]), int(tags[256])


def _orientation(image: Image.Image) -> int:
    value: int = image.getexif().get(ORIENTATION, 1)
    return value


def _unread(image: Image.Image) -> str:
    """Detects unreadable EXIF data, which Pillow ignores silently."""
    stored = len(image.info.get("exif", b""))
    damaged = stored > EMPTY_EXIF and not len(image.getexif())
    return "damaged EXIF data; used as stored" if damaged else ""


def _damage(image: Image.Image) -> str:
    """What is wrong with a turned image's EXIF data; Pillow's own turning would fail on it."""
    if image.format == "TIFF":  # these tags describe the pixels: damage shows when decoding
        return ""
    try:
        image.getexif().tobytes()
    except Exception as error:  # as above
        return f"damaged EXIF data ({error}); turned as its orientation says"
    return ""
