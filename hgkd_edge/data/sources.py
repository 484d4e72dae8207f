"""Image sources: a sequence of (photo, label), the same photo for the same index every time.

A source decodes to a fixed square-ish *canvas* of uint8 pixels, a little larger than what the
networks see; everything random (crop, flip, mask) happens later, on the device, from the step's own
random numbers. So a source holds no random state and a run can be resumed at any step.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from hgkd_edge.errors import DataError
from hgkd_edge.recipe import DataConfig

__all__ = ["ImageSource", "Photo", "canvas_size", "open_splits"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
BUNDLED = Path(__file__).parent / "bundled" / "clothing10.zip"
SPLITS = ("train", "val", "test")
UNLABELLED = -1


@dataclass(frozen=True)
class Photo:
    """One image file: its name, its label (-1: none), and how to read its bytes."""

    name: str
    label: int
    read: Callable[[], bytes]


@dataclass
class ImageSource:
    """Photos of one split, decoded once.

    Attributes:
        images: uint8 [n, 3, H_canvas, W_canvas].
        labels: int64 [n], -1 where unlabelled.
        names: File names, relative to the source's root.
        classes: Class names; empty when the photos are unlabelled.
        skipped: Files that could not be read, with the reason.
        fingerprint: sha256 over names and file contents: equal exactly when the data are.
    """

    images: torch.Tensor
    labels: torch.Tensor
    names: list[str]
    classes: list[str]
    fingerprint: str
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def labelled(self) -> bool:
        """Whether every photo has a label."""
        return len(self.classes) > 1 and bool((self.labels != UNLABELLED).all())

    def subset(self, indices: torch.Tensor) -> ImageSource:
        """The photos at `indices`, int64 [m]."""
        chosen = hashlib.sha256(f"{self.fingerprint}\0{indices.tolist()}".encode())
        return replace(
            self,
            images=self.images[indices],
            labels=self.labels[indices],
            names=[self.names[i] for i in indices.tolist()],
            fingerprint=chosen.hexdigest(),
        )


def canvas_size(size: tuple[int, int]) -> tuple[int, int]:
    """Side lengths that photos are decoded to: 8/7 of what the networks see (256 for 224)."""
    return round(size[0] * 8 / 7), round(size[1] * 8 / 7)


def open_splits(config: DataConfig) -> dict[str, ImageSource]:
    """Open a recipe's photos: `train`, and a held-out split named `test`, `val` or `holdout`.

    Raises:
        DataError: The folder is missing, or holds no image that can be read.
    """
    photos, classes = _bundled_photos() if config.source == "bundled" else _folder_photos(config)
    canvas = canvas_size(config.size)
    threads = os.cpu_count() or 1 if config.workers == "auto" else max(1, config.workers)
    splits = {name: _decode(group, classes, canvas, threads) for name, group in photos.items()}
    root = "the bundled photos" if config.source == "bundled" else str(config.path)
    if not len(splits["train"]):
        reasons = splits["train"].skipped
        raise DataError(
            f"{root}: none of {len(reasons)} image files can be read"
            + (f"; the first, {reasons[0][0]}: {reasons[0][1]}" if reasons else ""),
            hint="the training split needs readable .jpg, .png, .webp, .bmp, .tif or .gif files",
        )
    return splits


def _bundled_photos() -> tuple[dict[str, list[Photo]], list[str]]:
    archive = zipfile.ZipFile(BUNDLED)
    names = sorted(archive.namelist())
    classes = sorted({name.split("/")[1] for name in names})
    photos: dict[str, list[Photo]] = {}
    for name in names:
        split, label, _ = name.split("/")
        # Bytes are read here: a ZipFile must not be read by several threads at once.
        content = archive.read(name)
        photos.setdefault(split, []).append(
            Photo(name, classes.index(label), partial(bytes, content))
        )
    return photos, classes


def _folder_photos(config: DataConfig) -> tuple[dict[str, list[Photo]], list[str]]:
    """Photos by split: `root/{train,val,test}/...`, or one tree with a share held out."""
    assert config.path is not None, "checked by DataConfig"
    root = config.path.expanduser()
    if not root.is_dir():
        raise DataError(f"data.path '{root}' is not a folder", hint="name a folder of images")
    has_splits = (root / "train").is_dir()
    tops = [root / split for split in SPLITS if (root / split).is_dir()] if has_splits else [root]
    files = {top: _image_files(top) for top in tops}
    if not any(files.values()):
        raise DataError(f"data.path '{root}' holds no image files", hint="is it the right folder?")
    classes = sorted({c for top in tops for f in files[top] if (c := _class_of(f, top))})
    if len(classes) < 2:
        classes = []  # one subfolder is a place, not a label
    photos: dict[str, list[Photo]] = {}
    for top in tops:
        for file in files[top]:
            name = file.relative_to(root).as_posix()
            split = top.name if has_splits else _holdout_split(name, config.holdout)
            label_name = _class_of(file, top)
            label = classes.index(label_name) if label_name in classes else UNLABELLED
            photos.setdefault(split, []).append(Photo(name, label, file.read_bytes))
    photos.setdefault("train", [])
    return photos, classes


def _image_files(top: Path) -> list[Path]:
    return sorted(p for p in top.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def _class_of(file: Path, top: Path) -> str:
    """The first subfolder below the split's top, '' for a file that lies in the top itself."""
    parts = file.relative_to(top).parts
    return parts[0] if len(parts) > 1 else ""


def _holdout_split(name: str, share: float) -> str:
    """'holdout' for a fixed share of names: by hash, so that new photos never move old ones."""
    draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "holdout" if draw < share else "train"


def _decode(
    photos: Sequence[Photo], classes: list[str], canvas: tuple[int, int], threads: int
) -> ImageSource:
    """Decode photos in threads (PIL releases the interpreter lock), leaving unreadable ones out."""
    pixels = _allocate((len(photos), 3, *canvas))
    with ThreadPoolExecutor(threads) as pool:
        outcomes = list(
            pool.map(lambda pair: _decode_into(*pair), zip(photos, pixels, strict=True))
        )
    digest = hashlib.sha256()
    for photo, outcome in zip(photos, outcomes, strict=True):
        if outcome.content_hash:
            digest.update(f"{photo.name}\0{outcome.content_hash}\n".encode())
    kept = [i for i, outcome in enumerate(outcomes) if outcome.content_hash]
    for place, i in enumerate(kept):  # close the gaps in place: the array may be larger than memory
        if place != i:
            pixels[place] = pixels[i]
    return ImageSource(
        images=torch.from_numpy(pixels[: len(kept)]),
        labels=torch.tensor([photos[i].label for i in kept], dtype=torch.int64),
        names=[photos[i].name for i in kept],
        classes=classes,
        fingerprint=digest.hexdigest(),
        skipped=[(p.name, o.fault) for p, o in zip(photos, outcomes, strict=True) if o.fault],
    )


def _allocate(shape: tuple[int, ...]) -> np.ndarray:
    """uint8 zeros: in memory, or in an unnamed temporary file where they would crowd it out."""
    size = math.prod(shape)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size < memory // 4:
        return np.zeros(shape, np.uint8)
    return np.memmap(tempfile.TemporaryFile(), np.uint8, "w+", shape=shape)


class _Outcome(NamedTuple):
    """Of one decoded file: the sha256 of its bytes, or what is wrong with it."""

    content_hash: str
    fault: str


def _decode_into(photo: Photo, pixels: np.ndarray) -> _Outcome:
    """Decode a photo into `pixels`, uint8 [3, H_canvas, W_canvas]."""
    height, width = pixels.shape[1:]
    try:
        content = photo.read()
        with Image.open(io.BytesIO(content)) as image:
            image.draft("RGB", (width * 2, height * 2))  # JPEG: decode at a coarser scale
            upright = ImageOps.exif_transpose(image).convert("RGB")
        pixels[:] = np.asarray(_cover(upright, (height, width))).transpose(2, 0, 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return _Outcome("", str(error) or type(error).__name__)
    return _Outcome(hashlib.sha256(content).hexdigest(), "")


def _cover(image: Image.Image, canvas: tuple[int, int]) -> Image.Image:
    """Resize so that the image covers the canvas, and cut the overhang evenly."""
    height, width = canvas
    scale = max(height / image.height, width / image.width)
    box_width, box_height = width / scale, height / scale
    left, top = (image.width - box_width) / 2, (image.height - box_height) / 2
    box = (left, top, left + box_width, top + box_height)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)
