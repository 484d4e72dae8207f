"""The input contract: from a decoded image to a network's input, as code, data and a snippet.

Every step exists in common deployment stacks: turn upright, one bilinear antialiased resize, a
center crop or a gray margin, scale to [0, 1], normalize. `exporters.bake` writes the same as ONNX.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from PIL import Image

from hgkd_edge.data.resize import PAD, Geometry, Placement, cover, letterbox, place
from hgkd_edge.parsing import brief, parse_json

__all__ = ["BAKED", "PREFIX", "InputSpec"]

PREFIX = "hgkd_edge."  # of all our keys in a model file's metadata
BAKED = f"{PREFIX}baked"  # the key of a file with processing inside
MAX_VALUES = 2**27  # values of one input: 6,688 px a side
_COVER = """\
    w, h = max(WIDTH, w * HEIGHT // h), max(HEIGHT, h * WIDTH // w)
    image = image.resize((w, h), Image.Resampling.BILINEAR)  # Pillow's is antialiased
    left, top = round((w - WIDTH) / 2), round((h - HEIGHT) / 2)
    image = image.crop((left, top, left + WIDTH, top + HEIGHT))
"""
_LETTERBOX = """\
    w, h = min(WIDTH, w * HEIGHT // h), min(HEIGHT, h * WIDTH // w)
    resized = image.resize((max(1, w), max(1, h)), Image.Resampling.BILINEAR)  # antialiased
    image = Image.new("RGB", (WIDTH, HEIGHT), ({pad}, {pad}, {pad}))
    image.paste(resized, (0, 0))
"""
_SNIPPET = """\
import numpy as np
from PIL import Image, ImageOps

HEIGHT, WIDTH = {height}, {width}
MEAN = np.array({mean}, np.float32)
STD = np.array({std}, np.float32)


def preprocess(path):
    \"\"\"An image file (8 bits per channel) as float32 [1, 3, HEIGHT, WIDTH].\"\"\"
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    w, h = image.size
{resize}    pixels = np.asarray(image, np.float32) / 255
    return np.ascontiguousarray(((pixels - MEAN) / STD).transpose(2, 0, 1)[None])
"""


@dataclass(frozen=True)
class InputSpec:
    """What a network takes as input, and how an image is converted to it.

    Attributes:
        size: Height and width in pixels.
        mean: Per channel (RGB), subtracted from values in [0, 1].
        std: Per channel, divided by.
        geometry: `cover` resizes until the image covers the input and crops the center;
            `letterbox` resizes until it fits and fills the right or bottom margin with gray.
        bits: Bits used by image files of 16 bits per sample; 0: all 16.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    geometry: Geometry
    bits: int = 0

    def image(self, image: Image.Image) -> Image.Image:
        """An upright RGB image as the network sees it, before normalization."""
        return cover(image, self.size) if self.geometry == "cover" else letterbox(image, self.size)

    def array(self, image: Image.Image) -> np.ndarray:
        """An upright RGB image as the network's input, float32 [1, 3, H, W]."""
        pixels = np.asarray(self.image(image), np.float32) / 255  # [H, W, 3]
        pixels = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])

    def placement(self, image: Image.Image) -> Placement:
        """Where a letterboxed image lies on the input; needed to map boxes back to the image."""
        return place((image.height, image.width), self.size)

    def snippet(self) -> str:
        """Python code (numpy and Pillow) that makes the network's input from an image file."""
        resize = _COVER if self.geometry == "cover" else _LETTERBOX.replace("{pad}", str(PAD))
        (height, width), mean, std = self.size, list(self.mean), list(self.std)
        return _SNIPPET.format(height=height, width=width, mean=mean, std=std, resize=resize)

    def metadata(self) -> dict[str, str]:
        """Entries for a model file's metadata, without prefix; values are JSON."""
        steps: dict[str, object] = {
            "orientation": "upright (EXIF)",
            "color": "RGB",
            "geometry": self.geometry,
            "interpolation": "bilinear, antialiased",
            "range": [0, 1],
            "mean": list(self.mean),
            "std": list(self.std),
            "layout": "NCHW",
            "dtype": "float32",
        }
        if self.geometry == "letterbox":
            steps |= {"anchor": "top left", "fill": PAD}
        if self.bits:
            steps |= {"bits": self.bits}
        entries = {
            "input_size": [3, *self.size],
            "mean": list(self.mean),
            "std": list(self.std),
            "preprocessing": steps,
            "preprocessing_python": self.snippet(),
        }
        return {key: json.dumps(value) for key, value in entries.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], *, geometry: Geometry) -> InputSpec:
        """Read the entries written by `metadata`, as JSON under `hgkd_edge.<key>`.

        Args:
            metadata: Metadata of a model file.
            geometry: Used for files of earlier versions, which do not state it.

        Raises:
            KeyError, ValueError, TypeError: An entry is missing or damaged.
        """
        size, mean, std = (parse_json(metadata[PREFIX + k]) for k in ("input_size", "mean", "std"))
        steps = parse_json(metadata.get(f"{PREFIX}preprocessing", "{}"))
        if not isinstance(steps, dict):
            raise ValueError(f"preprocessing is {brief(steps)}")
        stated = steps.get("geometry", geometry)
        if stated not in get_args(Geometry):
            raise ValueError(f"unknown geometry {stated!r}")
        height, width = _whole(size[1:])
        mean, std = tuple(map(float, mean)), tuple(map(float, std))
        if len(mean) != 3 or len(std) != 3 or not np.isfinite((*mean, *std)).all() or min(std) <= 0:
            raise ValueError(f"mean {brief(mean)}, std {brief(std)}")
        bits = steps.get("bits", 0)
        if type(bits) is not int or not 0 <= bits <= 16:
            raise ValueError(f"bits is {brief(bits)}")
        return cls((height, width), mean, std, stated, bits)


def _whole(sides: Sequence[Any]) -> list[int]:
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"input size {sides!r}")
    if 3 * math.prod(sides) > MAX_VALUES:
        raise ValueError(f"input size {sides!r}: more than {MAX_VALUES:,} values")
    return list(sides)
