"""EXIF orientation: how an image is turned upright, and its boxes with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

__all__ = ["EMPTY_EXIF", "ORIENTATION", "UPRIGHT", "Turn", "turn_of"]

ORIENTATION = 0x0112  # the EXIF tag


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
    except MemoryError:
        raise
    except Exception as error:  # damaged tags raise almost anything
        return Turn(1, size, f"damaged EXIF data ({error or type(error).__name__}); used as stored")
    if orientation not in UPRIGHT:
        known = orientation in (0, 1)
        fault = _unread(image) if known else f"EXIF orientation {orientation!r}; used as stored"
        return Turn(1, size, fault)
    return Turn(orientation, size, _damage(image))


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
    except MemoryError:
        raise
    except Exception as error:  # as above
        return f"damaged EXIF data ({error}); turned as its orientation says"
    return ""
