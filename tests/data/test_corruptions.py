"""Hundreds of damaged images and annotations: each is used, or skipped with its reason.

The damage is generated from fixed seeds, so a failure repeats; its message names the seed.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from hgkd_edge.console import printable
from hgkd_edge.data.annotations import open_boxes, open_masks
from hgkd_edge.data.sources import ImageSource, open_splits
from hgkd_edge.errors import DataError
from hgkd_edge.recipe_sections import DataConfig
from hgkd_edge.tasks.answers import load_photo
from tests.damage import BINARY, TEXT, bounded, damaged
from tests.data.annotated import write_coco
from tests.data.helpers import data_config
from tests.data.image_files import damaged_exif, png, save_image, tiff
from tests.fuzzing import EXAMPLES

pytestmark = pytest.mark.timeout(3600 if EXAMPLES else 120)
PER_FORMAT = 60  # damaged files of each image format
PER_TEXT = max(EXAMPLES, 100)  # damaged annotation files of each format
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
PHOTO = Image.fromarray(PIXELS)
FRAMES: list[Image.Image] = [Image.fromarray(PIXELS // (i + 2)) for i in range(3)]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


FORMATS: dict[str, bytes] = {
    "png": encoded(PHOTO, "PNG"),
    "jpg": encoded(PHOTO, "JPEG"),
    "progressive.jpg": encoded(PHOTO, "JPEG", progressive=True),
    "webp": encoded(PHOTO, "WEBP"),
    "bmp": encoded(PHOTO, "BMP"),
    "tiff": encoded(PHOTO, "TIFF", compression="tiff_lzw"),
    "gif": encoded(PHOTO, "GIF"),
    "ppm": encoded(PHOTO, "PPM"),
    **({"avif": encoded(PHOTO, "AVIF")} if features.check("avif") else {}),
}
# Unusual and allowed.
UNUSUAL: dict[str, bytes] = {
    "cmyk.jpg": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "gray.jpg": encoded(PHOTO.convert("L"), "JPEG"),
    "palette.png": encoded(PHOTO.convert("P"), "PNG"),
    "palette-transparent.png": encoded(PHOTO.convert("P"), "PNG", transparency=0),
    "one-bit.png": encoded(PHOTO.convert("1"), "PNG"),
    "alpha.png": encoded(PHOTO.convert("RGBA"), "PNG"),
    "16-bit.png": png(PIXELS.astype(np.uint16) * 257),
    "16-bit-gray.tiff": tiff(PIXELS[..., 0].astype(np.uint16) * 257),
    "12-bit.tiff": tiff(PIXELS[..., 0].astype(np.uint16) * 16, bits=12),
    "cmyk.tiff": encoded(PHOTO.convert("CMYK"), "TIFF"),
    "pages.tiff": encoded(PHOTO, "TIFF", save_all=True, append_images=FRAMES),
    "animated.gif": encoded(PHOTO, "GIF", save_all=True, append_images=FRAMES),
    "animated.webp": encoded(PHOTO, "WEBP", save_all=True, append_images=FRAMES),
    "animated.png": encoded(PHOTO, "PNG", save_all=True, append_images=FRAMES),
    "one-pixel.png": encoded(PHOTO.resize((1, 1)), "PNG"),
    "a-line.png": encoded(PHOTO.resize((3000, 1)), "PNG"),
    "exif.jpg": encoded(PHOTO, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
    **{
        f"exif-{where}.jpg": damaged_exif(PHOTO, 6, where=where)
        for where in ("model", "orientation", "offset", "header")
    },
}


def damaged_images() -> dict[str, bytes]:
    """Content by file name; names have a format's ending that may be another format's."""
    files = dict(UNUSUAL)
    for number, (kind, whole) in enumerate(FORMATS.items()):
        for seed in range(PER_FORMAT):
            files[f"{seed:02}-damaged.{kind}"] = damaged(whole, BINARY, seed)
        other = list(FORMATS)[(number + 1) % len(FORMATS)]
        files[f"renamed-{number}.{other}"] = whole
    for seed, (name, content) in enumerate(UNUSUAL.items()):
        files[f"damaged-{name}"] = damaged(content, BINARY, seed)
    files |= {"empty.png": b"", "text.jpg": b"not an image\n", "zeros.png": bytes(4096)}
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them in a folder, among names and links that are attacks themselves."""
    folder = tmp_path_factory.mktemp("damaged")
    for name, content in damaged_images().items():
        (folder / name).write_bytes(content)
    whole = FORMATS["png"]
    for name in (b"new\nline", b"caf\xe9", b"\x1b[2J", b"-rf", b"a" * 250):
        (folder / os.fsdecode(name + b".png")).write_bytes(whole)
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "nowhere.png").symlink_to("nothing")
    (folder / "inner").mkdir()
    (folder / "inner" / "up").symlink_to("..")
    (folder / "inner" / "folder.png").mkdir()
    return folder


def listed(folder: Path) -> list[str]:
    return [f.name for f in folder.iterdir() if f.suffix and not f.is_dir()]


def assert_reasons(skipped: list[tuple[str, str]]) -> None:
    for name, reason in skipped:
        assert reason, name
        assert len(reason) < 400, (name, reason)
        assert "\n" not in reason, (name, reason)
        assert printable(reason).isprintable(), (name, reason)


@pytest.mark.parametrize("decode", ["once", "streaming"])
def test_every_damaged_image_is_used_or_skipped_with_its_reason(files: Path, decode: str) -> None:
    with bounded(60, megabytes=4000):
        source = open_splits(data_config(files, decode=decode, holdout=0))["train"]
        pixels = source.images[torch.arange(len(source))]

    assert len(listed(files)) > 350
    used = len(source) if decode == "once" else len(source) - len(source.skipped)
    assert used + len(source.skipped) == len(listed(files))
    assert len(pixels) == len(source)
    assert_reasons(source.skipped)
    skipped = {name for name, _ in source.skipped}
    assert not skipped & {*UNUSUAL, *(f"renamed-{i}.{kind}" for i, kind in enumerate(FORMATS))}
    assert {"empty.png", "text.jpg", "zeros.png", "loop.png", "nowhere.png"} <= skipped


def test_predict_answers_or_names_the_damage(files: Path) -> None:
    answered, refused = 0, list[tuple[str, str]]()

    for name in sorted(listed(files)):
        with bounded(5):
            try:
                load_photo(files / name)
                answered += 1
            except DataError as error:
                refused.append((name, error.message.replace(str(files / name), "")))

    assert_reasons(refused)
    assert answered > 100
    assert len(refused) > 100


Make = Callable[[Path], Path]
Splits = dict[str, ImageSource]


def coco(root: Path) -> Path:
    return write_coco(root, photos=3)


def voc(root: Path) -> Path:
    corners = "<xmin>10</xmin><ymin>10</ymin><xmax>30</xmax><ymax>40</ymax>"
    for name in ("a", "b"):
        save_image(root / f"{name}.png", np.zeros((50, 100, 3), np.uint8))
        (root / f"{name}.xml").write_text(
            f"<annotation>\n<filename>{name}.png</filename>\n<size><width>100</width>"
            f"<height>50</height></size>\n<object>\n<name>cat</name>\n<bndbox>{corners}</bndbox>\n"
            "</object>\n</annotation>\n"
        )
    return root / "a.xml"


def yolo(root: Path) -> Path:
    for name in ("a", "b"):
        save_image(root / "images" / f"{name}.png", np.zeros((50, 100, 3), np.uint8))
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.4\n1 0.2 0.2 0.1 0.1\n")
    (root / "data.yaml").write_text("path: .\ntrain: images\nnames:\n  0: cat\n  1: dog\n")
    return root / "labels" / "a.txt"


def yolo_yaml(root: Path) -> Path:
    yolo(root)
    return root / "data.yaml"


def labelme(root: Path) -> Path:
    for name in ("a", "b"):
        save_image(root / f"{name}.png", np.zeros((50, 100, 3), np.uint8))
        shape = {"label": "cat", "points": [[10, 10], [40, 30]], "shape_type": "rectangle"}
        content = {"version": "5.0.1", "imagePath": f"{name}.png", "shapes": [shape]}
        size = {"imageHeight": 50, "imageWidth": 100}
        (root / f"{name}.json").write_text(json.dumps({**content, **size}, indent=1))
    return root / "a.json"


def table(root: Path) -> Path:
    for name in ("a", "b", "c"):
        save_image(root / f"{name}.png", PIXELS)
    lines = ["image,label,split", "a.png,cat,train", "b.png,dog,train", "c.png,cat,val"]
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return root / "list.csv"


def shard(root: Path) -> Path:
    with tarfile.open(root / "train.tar", "w") as archive:
        for number in range(4):
            members = ((f"{number}.png", FORMATS["png"]), (f"{number}.cls", b"%d" % (number % 2)))
            for name, content in members:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return root / "train.tar"


def mask(root: Path) -> Path:
    for name in ("a", "b"):
        save_image(root / "images" / f"{name}.png", PIXELS)
        save_image(root / "masks" / f"{name}.png", np.eye(24, 32, dtype=np.uint8))
    return root / "masks" / "a.png"


def as_boxes(file: Path, root: Path) -> Splits:
    return open_boxes(data_config(root, holdout=0))


def as_masks(file: Path, root: Path) -> Splits:
    return open_masks(data_config(root, holdout=0), binary=False)


def as_images(file: Path, root: Path) -> Splits:
    return open_splits(data_config(file, holdout=0))


def as_shards(file: Path, root: Path) -> Splits:
    return open_splits(data_config(file, holdout=0, source="webdataset"))


LABELS: dict[str, tuple[Make, Callable[[Path, Path], Splits], Any]] = {
    "COCO boxes": (coco, as_boxes, TEXT),
    "COCO outlines": (coco, as_masks, TEXT),
    "Pascal VOC": (voc, as_boxes, TEXT),
    "YOLO": (yolo, as_boxes, TEXT),
    "YOLO's data.yaml": (yolo_yaml, as_boxes, TEXT),
    "LabelMe": (labelme, as_boxes, TEXT),
    "CSV": (table, as_images, TEXT),
    "shards": (shard, as_shards, BINARY),
    "masks": (mask, as_masks, BINARY),
}


@pytest.mark.parametrize("kind", LABELS)
def test_every_damaged_annotation_is_used_or_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    make, read, damages = LABELS[kind]
    file = make(tmp_path)
    whole = file.read_bytes()
    assert len(read(file, tmp_path)["train"]) > 0

    refused, reasons = 0, list[tuple[str, str]]()
    for seed in range(PER_TEXT):
        file.write_bytes(damaged(whole, damages, seed))
        try:
            with bounded(5):
                splits = read(file, tmp_path)
        except DataError as error:
            refused += 1
            reasons.append((f"seed {seed}", str(error)))
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        else:
            reasons += [each for source in splits.values() for each in source.skipped]

    assert_reasons(reasons)
    assert refused < PER_TEXT, "one damage does not make every data set useless"


def hostile_members() -> Iterator[tarfile.TarInfo]:
    for name in ("../../escaped.png", "/escaped.png", "a/../../escaped.png", "new\nline.png"):
        yield tarfile.TarInfo(name)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        member = tarfile.TarInfo(f"special-{kind.decode()}.png")
        member.type, member.linkname = kind, "/etc/passwd"
        yield member


def test_members_of_a_shard_that_lead_outside_create_nothing_and_read_nothing(
    tmp_path: Path,
) -> None:
    (tmp_path / "in" / "side").mkdir(parents=True)
    file = shard(tmp_path / "in" / "side")
    with tarfile.open(file, "a") as archive:
        for member in hostile_members():
            archive.addfile(member)
    before = sorted(tmp_path.rglob("*"))

    source = as_shards(file, tmp_path)["train"]

    assert sorted(tmp_path.rglob("*")) == before
    assert len(source) == 4
    assert len(source.skipped) == 4, "those that say they are files have no bytes"


def test_images_that_a_data_set_names_outside_its_folder_are_counted_in_a_warning(
    tmp_path: Path,
) -> None:
    private, shared = tmp_path / "private", tmp_path / "shared"
    save_image(private / "me.png", PIXELS)
    shared.mkdir()
    (shared / "list.csv").write_text("image\n../private/me.png\n")
    config = DataConfig(path=shared / "list.csv", image_size=32, holdout=0)

    def change(content: dict[str, Any]) -> None:
        content["images"][0]["file_name"] = str(private / "me.png")

    write_coco(shared, change=change)
    sources = [open_splits(config), open_boxes(data_config(shared, holdout=0))]

    for source in sources:
        (line,) = [line for line in source["train"].remarks if "outside" in line]
        assert line.startswith(f"warning: 1 image outside {shared}, such as ")
        assert line.endswith("private/me.png")


def test_damaged_tags_print_no_warning_of_a_library(files: Path) -> None:
    read = (
        "import sys; from hgkd_edge.data.images import open_image\n"
        "from pathlib import Path\n"
        "for file in Path(sys.argv[1]).glob('*.tif*'):\n"
        "    try:\n"
        "        with open_image(file) as image: image.getexif(), image.load()\n"
        "    except Exception: pass\n"
    )

    done = subprocess.run([sys.executable, "-c", read, files], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr  # the lines of libtiff itself go to the terminal
