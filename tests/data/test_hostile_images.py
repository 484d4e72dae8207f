"""Malicious image files: each fails with a one-line message while the other images are read."""

from __future__ import annotations

import ast
import io
import os
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hgkd_edge.data import box_labels, images
from hgkd_edge.data.annotations.outlines import Shape, paint
from hgkd_edge.data.images import FORMATS, MAX_FILE_BYTES, MAX_PIXELS, open_image
from hgkd_edge.data.shards import Member, _Shards
from hgkd_edge.data.sources import open_splits
from hgkd_edge.errors import DataError
from hgkd_edge.recipe_sections import DataConfig
from hgkd_edge.tasks.answers import load_photo
from tests.data.annotated import boxes, masks, write_coco
from tests.data.image_files import png

pytestmark = pytest.mark.timeout(60)
PHOTO = np.full((40, 40, 3), 128, np.uint8)
Skipped = list[tuple[str, str]]


def save(file: Path, pixels: np.ndarray = PHOTO) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return file


def as_training_photo(root: Path, bad: Path, decode: str = "once") -> Skipped:
    """The skipped files of a folder with this file and a good one."""
    save(root / "photos" / "good.png")
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
    save(root / "good.png")
    (root / "list.csv").write_text(f"image\ngood.png\n{bad}\n")
    source = open_splits(DataConfig(path=root / "list.csv", image_size=35, holdout=0))["train"]
    assert source.names == ["good.png"]
    return source.skipped


def as_annotated_photo(root: Path, bad: Path) -> Skipped:
    for name in ("good", "bad"):
        save(root / "masks" / f"{name}.png", np.eye(40, dtype=np.uint8))
    save(root / "images" / "good.png")
    bad.rename(root / "images" / "bad.png")
    source = masks(root, holdout=0)["train"]
    assert source.names == ["images/good.png"]
    return source.skipped


def as_mask(root: Path, bad: Path) -> Skipped:
    for name in ("good", "bad"):
        save(root / "images" / f"{name}.png")
    save(root / "masks" / "good.png", np.eye(40, dtype=np.uint8))
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
    save(tmp_path / f"a.{suffix}")
    (tmp_path / f"a.{suffix}").rename(tmp_path / "a.png")

    with pytest.raises(ValueError, match=r"not an image of a known format \(.*PNG.*\)"):
        open_image(tmp_path / "a.png").__enter__()


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "tiff", "webp", "ppm", "avif"])
def test_formats_of_images_are_opened_whatever_their_name(tmp_path: Path, suffix: str) -> None:
    if suffix == "avif" and "AVIF" not in Image.registered_extensions().values():
        pytest.skip("this Pillow reads no AVIF")
    save(tmp_path / f"a.{suffix}")
    (tmp_path / f"a.{suffix}").rename(tmp_path / "a.gif")

    with open_image(tmp_path / "a.gif") as image:
        assert image.format in FORMATS


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listener(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # socket names must be short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


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


@pytest.mark.parametrize("side", [12_000, 50_000])  # below and above Pillow's own bound
@pytest.mark.parametrize("make", [huge_png, huge_bmp, huge_gif, huge_pgm, tiled_tiff])
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
    "content",
    [
        text_chunks(b"iCCP", b"a\0\0", size=100_000_000, count=1),
        text_chunks(b"zTXt", b"a\0\0", size=100_000_000, count=1),
        text_chunks(b"iTXt", b"a\0\1\0\0\0", size=1_000_000, count=100),
    ],
    ids=["color profile", "text", "many texts"],
)
def test_a_png_whose_texts_unpack_to_very_much_is_skipped(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    (tmp_path / "data").mkdir()

    assert as_training_photo(tmp_path / "data", tmp_path / "a.png")


def peak_megabytes(code: str, *arguments: object, limit: int = 4000) -> float:
    """Peak memory of code in a separate process, without the memory of its imports.

    Args:
        code: Imports, a line `---`, and what is measured; `sys.argv` holds the arguments.
        arguments: For the code.
        limit: Maximum megabytes of address space, so that a failure is harmless.
    """
    imports, measured = textwrap.dedent(code).split("---\n")
    program = f"""
import re, resource, sys
{imports}
# Not `ru_maxrss`: that begins with the peak of the process that started this one.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {limit} * 2**20,) * 2)
before = peak()
{measured}
print(peak() - before)
"""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.splitlines()[-1])


needs_linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")


@needs_linux
@pytest.mark.parametrize(("bits", "channels", "bytes_each"), [(12, 1, 9), (16, 1, 9), (12, 3, 22)])
def test_a_16_bit_image_takes_a_few_bytes_a_pixel(
    tmp_path: Path, bits: int, channels: int, bytes_each: int
) -> None:
    pixels = np.zeros((3000, 3000, channels), np.uint16)
    pixels[:5] = 2**bits - 1
    file = tmp_path / "a.png"
    file.write_bytes(png(pixels))

    code = """
        from pathlib import Path
        from hgkd_edge.tasks.answers import load_photo
        ---
        load_photo(Path(sys.argv[1]), bits=int(sys.argv[2]))
        """

    assert file.stat().st_size < 100_000
    assert peak_megabytes(code, file, bits) < bytes_each * 3000**2 / 2**20


@needs_linux
def test_of_many_frames_one_is_decoded(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((1000, 1000), i, np.uint8)) for i in range(80)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.tiff", save_all=True, append_images=frames[1:])

    code = """
        from pathlib import Path
        from hgkd_edge.tasks.answers import load_photo
        ---
        assert load_photo(Path(sys.argv[1])).getpixel((0, 0)) == (0, 0, 0)
        """

    # The TIFF file itself has 80 MB, uncompressed.
    assert peak_megabytes(code, tmp_path / "a.gif") < 30
    assert peak_megabytes(code, tmp_path / "a.tiff") < 110


@needs_linux
def test_a_huge_label_map_takes_a_few_bytes_a_pixel(tmp_path: Path) -> None:
    labels = np.zeros((4000, 4000), np.uint8)
    labels[:2000] = 255
    labels[2000:2100] = 128
    file = save(tmp_path / "a.png", labels)

    code = """
        from pathlib import Path
        from hgkd_edge.data.annotations.codes import Tally, settle_coding, in_range
        from hgkd_edge.data.annotations.masks import read_mask
        ---
        tally = Tally.of(in_range(read_mask(Path(sys.argv[1]))))
        coding, _ = settle_coding({"train": tally}, [], "auto", "auto", Path())
        coding.labels(read_mask(Path(sys.argv[1])))
        """

    assert file.stat().st_size < 200_000
    assert peak_megabytes(code, file) < 7 * labels.size / 2**20


@needs_linux
def test_a_tinted_picture_takes_a_few_bytes_a_pixel() -> None:
    code = """
        import numpy as np
        from PIL import Image
        from hgkd_edge.tasks.pictures import draw_segments
        ---
        draw_segments(Image.new("RGB", (4000, 4000)), np.ones((4000, 4000), np.uint8))
        """

    assert peak_megabytes(code) < 20 * 4000**2 / 2**20


@needs_linux
def test_many_outlines_of_a_huge_image_take_the_memory_of_one_map() -> None:
    code = """
        import numpy as np
        from hgkd_edge.data.annotations.outlines import Shape, paint
        polygon = [[0, 0, 4000, 0, 4000, 3000, 0, 3000]]
        runs = {"size": [3000, 4000], "counts": [5, 3000 * 4000 - 5]}
        paint([Shape(1, [[0, 0, 9, 0, 9, 9]], "")], (10, 10))  # loads pycocotools
        ---
        labels, faults = paint([Shape(1, polygon, ""), Shape(2, runs, "")] * 40, (3000, 4000))
        assert not faults and set(np.unique(labels)) == {1, 2}
        """

    assert peak_megabytes(code) < 6 * 12


@pytest.mark.parametrize(
    ("outline", "expected"),
    [
        ([[0, 0, 3000, 3000] * 2000], "longer than 2,097,152 pixels"),
        ({"size": [3000, 3000], "counts": "o" * 300_000}, "too many digits"),
    ],
    ids=["polygon", "digits"],
)
def test_an_outline_that_would_take_for_ever_is_refused(outline: Any, expected: str) -> None:
    started = time.monotonic()

    _, ((_, reason),) = paint([Shape(1, outline, "a:1")], (3000, 3000))

    assert expected in reason
    assert time.monotonic() - started < 2


def coco_of(root: Path, boxes_of_first: int, photos: int) -> Path:
    def change(content: dict[str, Any]) -> None:
        one = {"image_id": 0, "category_id": 7, "bbox": [10, 10, 20, 30]}
        content["annotations"] += [one] * (boxes_of_first - 1)

    write_coco(root, photos=photos, change=change)
    return root


def test_an_image_of_countless_boxes_is_skipped(tmp_path: Path) -> None:
    source = boxes(coco_of(tmp_path, 20_000, 3), holdout=0)["train"]

    assert len(source) == 2
    ((_, reason),) = source.skipped
    assert "has 20,000 boxes; images with up to 4,096 are used; image skipped" in reason


def test_one_crowded_image_does_not_make_all_others_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = boxes(coco_of(tmp_path, 3000, 4), holdout=0)["train"]

    crowded = next(i for i in range(4) if source.batch(_all(4)[i : i + 1])[1].shape[1] > 1)
    others = [i for i in range(4) if i != crowded]

    assert source.batch(_all(4)[others])[1].shape == (3, 1, 5)
    assert source.batch(_all(4))[1].shape == (4, 3000, 5)
    assert [part.shape[1] for part in source.labels.split(1)].count(1) == 3
    assert source.subset(_all(4)[others]).batch(_all(3))[1].shape == (3, 1, 5)
    held = sum(boxes.nbytes for boxes in source.labels.photos)  # type: ignore[attr-defined]
    assert held == 5 * 4 * 3003
    assert box_labels.MAX_BOXES == 4096


def test_large_images_are_decoded_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = save(tmp_path / "a.png"), save(tmp_path / "b.png", PHOTO.repeat(2, axis=0))
    monkeypatch.setattr(images, "LARGE", PHOTO.shape[0] * PHOTO.shape[1])
    lock, open_now = threading.Lock(), dict.fromkeys((small, large), 0)
    most = dict(open_now)

    def decode(file: Path) -> None:
        with open_image(file), open_image(file):  # 16-bit color is opened twice
            with lock:
                open_now[file] += 1
                most[file] = max(most[file], open_now[file])
            time.sleep(0.02)
            with lock:
                open_now[file] -= 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(decode, [small, large] * 6))

    assert most[large] == 1
    assert most[small] > 1


@pytest.mark.parametrize("make", [pipe, endless])
@pytest.mark.parametrize("name", ["train.json", "annotations/train.json"])
def test_what_is_no_file_is_no_annotation(
    tmp_path: Path, make: Callable[[Path], None], name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    make(tmp_path / name)

    with pytest.raises(DataError, match="holds no boxes that can be read"):
        boxes(tmp_path)


def test_images_are_opened_in_one_place() -> None:
    package = Path(images.__file__).parent.parent
    opening = [
        file.relative_to(package).as_posix()
        for file in sorted(package.rglob("*.py"))
        if file.parent.name != "device"  # copied into bundles, where it runs without this package
        and any(ast.unparse(node) == "Image.open" for node in ast.walk(ast.parse(file.read_text())))
    ]

    assert opening == ["data/images.py"]
