"""JPEGs that no coarser scale suits: torchvision's decoder gives the pixels that Pillow gives."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hgkd_edge.data import decode

CANVAS = (3, 32, 32)


def jpeg(size: tuple[int, int] = (50, 37), mode: str = "RGB", **options: Any) -> bytes:
    """A picture with detail; `size` is width and height."""
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def canvas_of(content: bytes) -> np.ndarray:
    pixels = np.empty(CANVAS, np.uint8)
    decode.decode_into(content, pixels, exact=False)
    return pixels


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every file that torchvision decoded."""
    found: list[int] = []
    original = decode.decode_jpeg

    def counted(*arguments: Any) -> Any:
        planes = original(*arguments)
        found.append(1)
        return planes

    monkeypatch.setattr(decode, "decode_jpeg", counted)
    return found


def refusing(error: Exception) -> Callable[..., Any]:
    def refuse(*_: Any) -> Any:
        raise error

    return refuse


@pytest.mark.parametrize("size", [(50, 37), (37, 50), (63, 40), (1, 1), (7, 13)])
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
def test_both_decoders_give_the_same_pixels(
    size: tuple[int, int],
    options: dict[str, Any],
    calls: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = jpeg(size, **options)

    fast = canvas_of(content)
    monkeypatch.setattr(decode, "decode_jpeg", refusing(RuntimeError("damaged")))
    pillow = canvas_of(content)

    assert len(calls) == 1
    assert np.array_equal(fast, pillow)


@pytest.mark.parametrize(
    "content",
    [
        jpeg((80, 64)),  # half the scale still covers the canvas
        jpeg(mode="L"),
        jpeg(mode="CMYK"),
        jpeg(exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    ],
    ids=["large", "gray", "cmyk", "turned"],
)
def test_other_jpegs_are_left_to_pillow(content: bytes, calls: list[int]) -> None:
    canvas_of(content)

    assert not calls


@pytest.mark.parametrize("error", [AttributeError("no JPEG"), RuntimeError("no JPEG")])
def test_a_torchvision_without_jpeg_costs_speed_only(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = jpeg()
    expected = canvas_of(content)

    monkeypatch.setattr(decode, "decode_jpeg", refusing(error))

    assert np.array_equal(canvas_of(content), expected)


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_truncated_jpeg_is_refused_in_pillows_words(kept: float, calls: list[int]) -> None:
    content = jpeg((60, 60), quality=95)

    with pytest.raises(OSError, match="(?i)truncated"):
        canvas_of(content[: int(kept * len(content))])

    assert not calls
