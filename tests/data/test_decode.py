"""JPEGs for training: simplejpeg's pixels are close to Pillow's, its fallback."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.decode import mosaics
from hgkd_edge.data import decode

CANVAS = (3, 32, 32)


PHOTO = next(mosaics(640, 480, 1))


def jpeg(size: tuple[int, int] = (50, 37), mode: str = "RGB", **options: Any) -> bytes:
    """A photo; `size` is width and height."""
    image = Image.open(io.BytesIO(PHOTO)).resize(size, Image.Resampling.BICUBIC).convert(mode)
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def canvas_of(content: bytes) -> np.ndarray:
    pixels = np.empty(CANVAS, np.uint8)
    decode.decode_into(content, pixels, decode.Canvas(*CANVAS[1:], exact=False))
    return pixels


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every file that simplejpeg decoded."""
    found: list[int] = []
    original = decode.decode_jpeg

    def counted(*arguments: Any, **options: Any) -> Any:
        planes = original(*arguments, **options)
        found.append(1)
        return planes

    monkeypatch.setattr(decode, "decode_jpeg", counted)
    return found


def refusing(error: Exception) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise error

    return refuse


@pytest.mark.parametrize(
    "size", [(50, 37), (37, 50), (64, 64), (80, 65), (300, 200), (640, 480), (1, 1), (7, 13)]
)
@pytest.mark.parametrize(
    "options",
    [
        {"quality": 90},
        {"quality": 30, "subsampling": 0},
        {"subsampling": "4:1:1"},
        {"progressive": True, "subsampling": 1},
        {"restart_marker_blocks": 2},
        {"keep_rgb": True},
    ],
    ids=str,
)
def test_both_decoders_give_nearly_the_same_pixels(
    size: tuple[int, int],
    options: dict[str, Any],
    calls: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = jpeg(size, **options)

    fast = canvas_of(content)
    monkeypatch.setattr(decode, "decode_jpeg", refusing(ValueError("damaged")))
    pillow = canvas_of(content)

    assert len(calls) == 1
    difference = np.abs(fast.astype(int) - pillow.astype(int))
    assert difference.mean() < 3.5  # of 255: bicubic and bilinear differ as much
    assert np.quantile(difference, 0.99) <= 25


@pytest.mark.parametrize(
    "content",
    [
        jpeg(mode="L"),
        jpeg(mode="CMYK"),
        jpeg(exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    ],
    ids=["gray", "cmyk", "turned"],
)
def test_other_jpegs_are_left_to_pillow(content: bytes, calls: list[int]) -> None:
    canvas_of(content)

    assert not calls


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_truncated_jpeg_is_refused_in_pillows_words(kept: float, calls: list[int]) -> None:
    content = jpeg((60, 60), quality=95)

    with pytest.raises(OSError, match="(?i)truncated"):
        canvas_of(content[: int(kept * len(content))])

    assert not calls
