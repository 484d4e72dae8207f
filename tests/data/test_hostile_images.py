"""Malicious image files: each fails with a one-line message while the other images are read."""

from __future__ import annotations

import ast
import io
import os
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hgkd_edge.data import images
from hgkd_edge.data.images import FORMATS, MAX_FILE_BYTES, MAX_PIXELS, open_image
from hgkd_edge.data.shards import Member, _Shards
from hgkd_edge.data.sources import open_splits
from hgkd_edge.errors import DataError
from hgkd_edge.recipe_sections import DataConfig
from hgkd_edge.tasks.answers import load_photo
from tests.data.annotated import masks
from tests.data.image_files import endless, pipe, save_image

pytestmark = pytest.mark.timeout(60)
Skipped = list[tuple[str, str]]


def as_training_photo(root: Path, bad: Path, decode: str = "once") -> Skipped:
    """The skipped files of a folder with this file and a good one."""
    save_image(root / "photos" / "good.png")
    bad.rename(root / "photos" / "bad.png")
    config = DataConfig(
        path=root / "photos",
        image_size=35,
        holdout=0,
        decode=decode,  # type: ignore[arg-type]
    )
    source = open_splits(config)["train"]
    _, _ = source.batch(_all(len(source)))
    assert "good.png" in source.names
    return source.skipped


def as_streamed_photo(root: Path, bad: Path) -> Skipped:
    return as_training_photo(root, bad, "streaming")


def as_row_of_a_table(root: Path, bad: Path) -> Skipped:
    save_image(root / "good.png")
    (root / "list.csv").write_text(f"image\ngood.png\n{bad}\n")
    source = open_splits(DataConfig(path=root / "list.csv", image_size=35, holdout=0))["train"]
    assert source.names == ["good.png"]
    return source.skipped


def as_annotated_photo(root: Path, bad: Path) -> Skipped:
    for name in ("good", "bad"):
        save_image(root / "masks" / f"{name}.png", np.eye(40, dtype=np.uint8))
    save_image(root / "images" / "good.png")
    bad.rename(root / "images" / "bad.png")
    source = masks(root, holdout=0)["train"]
    assert source.names == ["images/good.png"]
    return source.skipped


def as_mask(root: Path, bad: Path) -> Skipped:
    for name in ("good", "bad"):
        save_image(root / "images" / f"{name}.png")
    save_image(root / "masks" / "good.png", np.eye(40, dtype=np.uint8))
    bad.rename(root / "masks" / "bad.png")
    source = masks(root, holdout=0)["train"]
    assert source.names == ["images/good.png"]
    return source.skipped


def by_predict(root: Path, bad: Path) -> Skipped:
    with pytest.raises(DataError) as caught:
        load_photo(bad)
    return [(str(bad), caught.value.message)]


READERS = [
    as_training_photo,
    as_streamed_photo,
    as_row_of_a_table,
    as_annotated_photo,
    as_mask,
    by_predict,
]
Reader = Callable[[Path, Path], Skipped]


def _all(count: int) -> Any:
    import torch

    return torch.arange(count)


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 40 40
%%EndComments
showpage
%%EOF
"""


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists once Ghostscript was started."""
    mark, gs = tmp_path / "started", tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {mark}\nexit 1\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gs.parent}:{os.environ['PATH']}")
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # looked for once in a process
    return mark


def test_the_attack_starts_ghostscript_where_every_format_is_opened(
    tmp_path: Path, mark: Path
) -> None:
    (tmp_path / "a.png").write_bytes(EPS)

    with Image.open(tmp_path / "a.png") as image, pytest.raises(subprocess.CalledProcessError):
        image.load()

    assert mark.exists()


@pytest.mark.parametrize("read", READERS)
def test_postscript_named_png_starts_no_program(tmp_path: Path, mark: Path, read: Reader) -> None:
    bad = tmp_path / "a.png"
    bad.write_bytes(EPS)

    (tmp_path / "data").mkdir()
    skipped = read(tmp_path / "data", bad)

    assert not mark.exists()
    assert any("not an image of a known format" in reason for _, reason in skipped)


@pytest.mark.parametrize("suffix", ["im", "sgi", "tga", "pcx", "ico", "dds", "jp2"])
def test_formats_that_nobody_asked_for_stay_closed(tmp_path: Path, suffix: str) -> None:
    save_image(tmp_path / f"a.{suffix}")
    (tmp_path / f"a.{suffix}").rename(tmp_path / "a.png")

    with pytest.raises(ValueError, match=r"not an image of a known format \(.*PNG.*\)"):
        open_image(tmp_path / "a.png").__enter__()


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "tiff", "webp", "ppm", "avif"])
def test_formats_of_images_are_opened_whatever_their_name(tmp_path: Path, suffix: str) -> None:
    if suffix == "avif" and "AVIF" not in Image.registered_extensions().values():
        pytest.skip("this Pillow reads no AVIF")
    save_image(tmp_path / f"a.{suffix}")
    (tmp_path / f"a.{suffix}").rename(tmp_path / "a.gif")

    with open_image(tmp_path / "a.gif") as image:
        assert image.format in FORMATS


def listener(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # socket names must be short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def vast(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def empty(path: Path) -> None:
    path.touch()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (pipe, "is a named pipe, no image"),
        (listener, "is a socket, no image"),
        (endless, "is a device, no image"),
        (vast, f"has 1,099,511,627,776 bytes; image files are read up to {MAX_FILE_BYTES:,}"),
        (empty, "is empty"),
    ],
)
@pytest.mark.parametrize("read", READERS)
def test_what_is_no_image_file_is_not_read(
    tmp_path: Path, read: Reader, make: Callable[[Path], None], expected: str
) -> None:
    make(tmp_path / "a.png")
    (tmp_path / "data").mkdir()

    skipped = read(tmp_path / "data", tmp_path / "a.png")

    assert any(expected in reason for _, reason in skipped), skipped


def test_a_member_of_a_shard_is_bounded_too(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"\0" * 2048)
    shards = _Shards({tmp_path / "a.tar": [Member("a.png", 512, 2**40, "")]})

    with pytest.raises(ValueError, match="image files are read up to"):
        shards.read(0)


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def huge_png(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def huge_bmp(side: int) -> bytes:
    return b"BM" + struct.pack(
        "<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0
    )


def huge_gif(side: int) -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HH", side, side)
        + b"\xf0\0\0"
        + b"\0" * 6
        + (b"," + struct.pack("<HHHH", 0, 0, side, side) + b"\0\x02\x01\0\0;")
    )


def huge_pgm(side: int) -> bytes:
    return f"P5 {side} {side} 255\n".encode()


def tiled_tiff(tile: int) -> bytes:
    """An image of 64 x 64 pixels in one tile of many."""
    shape = [(256, 3, 1, 64), (257, 3, 1, 64), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1)]
    tiles = [(322, 4, 1, tile), (323, 4, 1, tile), (324, 4, 1, 8), (325, 4, 1, 0)]
    tags = [*shape, (277, 3, 1, 1), *tiles]
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + b"\0\0\0\0"


def huge_jpeg(side: int) -> bytes:
    content = encoded("JPEG")
    sizes = content.index(b"\xff\xc0") + 5
    return content[:sizes] + struct.pack(">HH", side, side) + content[sizes + 4 :]


def huge_webp(side: int) -> bytes:
    content = encoded("WEBP")
    sizes = content.index(b"\x9d\x01\x2a") + 3
    most = 2**14 - 1  # of the format
    return content[:sizes] + struct.pack("<HH", *[min(side, most)] * 2) + content[sizes + 4 :]


def encoded(format: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(out, format)
    return out.getvalue()


HUGE = [huge_png, huge_bmp, huge_gif, huge_pgm, huge_jpeg, huge_webp]


@pytest.mark.parametrize("side", [12_000, 50_000])  # below and above Pillow's own bound
@pytest.mark.parametrize("make", [*HUGE, tiled_tiff])
@pytest.mark.parametrize("read", [as_training_photo, as_annotated_photo, as_mask, by_predict])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_of_too_many_pixels_is_refused_by_its_header(
    tmp_path: Path, read: Reader, make: Callable[[int], bytes], side: int
) -> None:
    assert side**2 > MAX_PIXELS
    (tmp_path / "a.png").write_bytes(make(side))
    (tmp_path / "data").mkdir()

    skipped = read(tmp_path / "data", tmp_path / "a.png")

    assert any(f"decoded up to {MAX_PIXELS:,}" in reason for _, reason in skipped), skipped


@pytest.mark.parametrize("make", HUGE)
@pytest.mark.parametrize("read", [as_training_photo, as_annotated_photo, as_mask, by_predict])
def test_an_image_without_pixels_is_skipped_with_its_reason(
    tmp_path: Path, read: Reader, make: Callable[[int], bytes]
) -> None:
    (tmp_path / "a.png").write_bytes(make(0))
    (tmp_path / "data").mkdir()

    skipped = read(tmp_path / "data", tmp_path / "a.png")

    assert any(len(reason) > 5 for _, reason in skipped), skipped


def scanned_jpeg(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan, of a few bytes, is repeated many times."""
    out = io.BytesIO()
    Image.new("RGB", (side, side)).save(out, "JPEG", progressive=True)
    content = out.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * scans + content[-2:]


@pytest.mark.parametrize("read", [as_training_photo, as_annotated_photo, as_mask, by_predict])
def test_a_jpeg_that_would_be_decoded_for_hours_is_refused(tmp_path: Path, read: Reader) -> None:
    content = scanned_jpeg(1000, 3000)
    (tmp_path / "a.png").write_bytes(content)
    (tmp_path / "data").mkdir()
    start = time.monotonic()

    skipped = read(tmp_path / "data", tmp_path / "a.png")

    assert len(content) < 150_000
    assert any("has 3,010 scans" in reason for _, reason in skipped), skipped
    assert time.monotonic() - start < 60


def test_a_jpeg_of_usual_scans_is_opened_whatever_its_size() -> None:
    for side, scans in ((64, 500), (2000, 20)):
        with open_image(scanned_jpeg(side, scans)) as image:
            assert image.size == (side, side)


def text_chunks(kind: bytes, head: bytes, *, size: int, count: int) -> bytes:
    """A PNG whose text chunks decompress to a huge size."""
    packed = head + zlib.compress(bytes(size), 9)
    chunk = struct.pack(">I", len(packed)) + kind + packed
    chunk += struct.pack(">I", zlib.crc32(kind + packed))
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    content = out.getvalue()
    return content[:33] + chunk * count + content[33:]


@pytest.mark.parametrize(
    ("kind", "head", "size", "count"),
    [
        (b"iCCP", b"a\0\0", 100_000_000, 1),
        (b"zTXt", b"a\0\0", 100_000_000, 1),
        (b"iTXt", b"a\0\1\0\0\0", 1_000_000, 100),
    ],
    ids=["color profile", "text", "many texts"],
)
def test_a_png_whose_texts_unpack_to_very_much_is_skipped(
    tmp_path: Path, kind: bytes, head: bytes, size: int, count: int
) -> None:
    (tmp_path / "a.png").write_bytes(text_chunks(kind, head, size=size, count=count))
    (tmp_path / "data").mkdir()

    assert as_training_photo(tmp_path / "data", tmp_path / "a.png")


def attributes_of(tree: ast.AST) -> Iterator[ast.Attribute]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))


def test_images_are_opened_in_one_place() -> None:
    package = Path(images.__file__).parent.parent
    opening = [
        file.relative_to(package).as_posix()
        for file in sorted(package.rglob("*.py"))
        if file.parent.name != "device"  # copied into bundles, where it runs without this package
        and "Image.open" in map(ast.unparse, attributes_of(ast.parse(file.read_text())))
    ]

    assert opening == ["data/images.py"]
