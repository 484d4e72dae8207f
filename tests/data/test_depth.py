"""Images of 10, 12 and 14 bits in files of 16: all scaled by the bits that they use."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hgkd_edge.data.depth import Depth, depth_of, settle_bits
from hgkd_edge.data.sources import ImageSource, open_splits
from hgkd_edge.recipe_sections import DataConfig
from hgkd_edge.tasks.answers import load_photo
from tests.data.annotated import masks
from tests.data.image_files import png, tiff

SHAPE = (40, 40)
WRITE: dict[str, Callable[[np.ndarray], bytes]] = {"png": png, "tiff": tiff}


def ramp(highest: int, channels: int = 0) -> np.ndarray:
    """Pixels from 0 to `highest`, in color each channel a share of it."""
    pixels = np.linspace(0, highest, SHAPE[1]).round().astype(np.uint16)
    gray = np.tile(pixels, (SHAPE[0], 1))
    if not channels:
        return gray
    shares = np.array([1, 0.5, 0.25, 1][:channels])
    return (gray[..., None] * shares).astype(np.uint16)


def source_of(root: Path, **options: object) -> ImageSource:
    return open_splits(
        DataConfig(path=root, image_size=35, holdout=0, **options)  # type: ignore[arg-type]
    )["train"]


def brightness(source: ImageSource) -> list[int]:
    """The brightest pixel of each photo."""
    return [int(image.max()) for image in source.images]  # type: ignore[union-attr]


@pytest.mark.parametrize("decode", ["once", "streaming"])
@pytest.mark.parametrize(
    ("suffix", "channels"), [("png", 0), ("png", 3), ("png", 4), ("tiff", 0), ("tiff", 3)]
)
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_range_of_the_data_set_says_how_many_bits_are_used(
    tmp_path: Path, bits: int, suffix: str, channels: int, decode: str
) -> None:
    bright, dark = ramp(2**bits - 1, channels), ramp(2**bits // 8, channels)
    (tmp_path / f"bright.{suffix}").write_bytes(WRITE[suffix](bright))
    (tmp_path / f"dark.{suffix}").write_bytes(WRITE[suffix](dark))

    source = source_of(tmp_path, decode=decode)

    images = source.images[np.arange(2)] if decode == "once" else source.batch(_both())[0]
    assert abs(int(images[0].max()) - 255) <= 3
    assert abs(int(images[1].max()) - 32) <= 3, "by the data set's range, not by its own"
    assert source.decided == {"data.bits": bits}
    assert (f"16-bit images use {bits} bits" in " ".join(source.remarks)) == (bits < 16)
    shades = load_photo(tmp_path / f"bright.{suffix}", bits=bits)
    expected = np.round(bright[..., 0] if channels else bright) * (255 / (2**bits - 1))
    tolerance = 0.51 if bits < 16 or not channels else 1  # Pillow cuts 16-bit color
    assert np.abs(np.asarray(shades)[..., 0] - expected).max() <= tolerance


def _both() -> object:
    import torch

    return torch.arange(2)


def test_a_setting_decides_and_pixels_beyond_it_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(ramp(1000)))
    (tmp_path / "b.png").write_bytes(png(ramp(5000)))

    source = source_of(tmp_path, bits=12)

    assert source.names == ["a.png"]
    assert abs(brightness(source)[0] - 255 * 1000 / 4095) <= 1
    ((name, reason),) = source.skipped
    assert name == "b.png"
    assert "from 0 to 5000: can be 0 to 4095 only; set data.bits to 13" in reason
    assert source_of(tmp_path, bits=16).fingerprint != source.fingerprint


def test_files_that_pack_their_samples_are_certain(tmp_path: Path) -> None:
    (tmp_path / "a.tiff").write_bytes(tiff(ramp(500), bits=12))

    assert abs(brightness(source_of(tmp_path))[0] - 255 * 500 / 4095) <= 1


@pytest.mark.parametrize(
    ("content", "bits"),
    [
        (png(ramp(900), (b"sBIT", b"\x0c")), 12),
        (png(ramp(900, 3), (b"sBIT", b"\x0c\x0c\x0c")), 12),
        (png(ramp(4095) * 16, (b"sBIT", b"\x0c")), 16),  # scaled up, as the standard wants it
        (tiff(ramp(900), maximum=4095), 12),
        (tiff(ramp(900), maximum=65535), 16),
    ],
    ids=["gray png", "color png", "scaled png", "tiff", "full tiff"],
)
def test_what_files_state_counts_where_their_pixels_agree(
    tmp_path: Path, content: bytes, bits: int
) -> None:
    (tmp_path / f"a.{'png' if content[1:4] == b'PNG' else 'tiff'}").write_bytes(content)

    assert source_of(tmp_path).decided == {"data.bits": bits}


def test_pgm_files_are_scaled_by_their_own_maximum(tmp_path: Path) -> None:
    pixels = ramp(1000)
    (tmp_path / "a.png").write_bytes(b"P5 40 40 4095\n" + pixels.astype(">u2").tobytes())

    assert abs(brightness(source_of(tmp_path))[0] - 255 * 1000 / 4095) <= 1


def test_bits_hold_for_annotated_images_too(tmp_path: Path) -> None:
    for name, highest in (("a", 4095), ("b", 512)):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{name}.png").write_bytes(png(ramp(highest)))
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.eye(40, dtype=np.uint8)).save(tmp_path / "masks" / f"{name}.png")

    source = masks(tmp_path, holdout=0)["train"]

    inside = source.images[:, :, :, :64]  # type: ignore[index]
    assert abs(int(inside[0].max()) - 255) <= 3
    assert abs(int(inside[1, :, :, 2:62].max()) - 32) <= 3
    assert source.decided["data.bits"] == 12
    assert any("16-bit images use 12 bits" in line for line in source.remarks)


@pytest.mark.parametrize(
    ("found", "bits"),
    [
        ([Depth(0, 0)], 16),
        ([Depth(255, 0)], 8),
        ([Depth(700, 0), Depth(1023, 0)], 10),
        ([Depth(1024, 0)], 12),
        ([Depth(4096, 0)], 14),
        ([Depth(16384, 0)], 16),
        ([Depth(700, 12), Depth(600, 0)], 10),
        ([Depth(700, 12), Depth(600, 12)], 12),
    ],
)
def test_the_least_bits_that_hold_every_pixel_are_taken(found: list[Depth], bits: int) -> None:
    assert settle_bits(found) == bits


def test_a_file_shows_its_highest_pixel_and_the_bits_that_it_states() -> None:
    assert depth_of(png(ramp(1))) == (1, 0)  # nothing stated, even where one bit would do
    assert depth_of(png(ramp(900), (b"sBIT", b"\x0c"))) == (900, 12)


@pytest.mark.parametrize(("highest", "depth"), [(65_535, (65_535, 0)), (65_536, None)])
def test_files_of_32_bits_count_where_16_hold_their_pixels(
    highest: int, depth: tuple[int, int] | None
) -> None:
    out = io.BytesIO()
    Image.fromarray(np.full(SHAPE, highest, np.int32)).save(out, "TIFF")

    assert depth_of(out.getvalue()) == depth


def test_images_of_8_bits_need_no_decision(photos: Path) -> None:
    source = open_splits(DataConfig(path=photos, image_size=35))["train"]

    assert source.decided == {}
    assert source.remarks == []
