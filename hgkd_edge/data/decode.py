"""From the bytes of an image file to a canvas of uint8 pixels: all at once, or on demand."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from simplejpeg import decode_jpeg, decode_jpeg_header
from torch import Tensor

from hgkd_edge.console import warn
from hgkd_edge.data.depth import decode_rgb
from hgkd_edge.data.images import open_image
from hgkd_edge.data.orientation import Turn, turn_of
from hgkd_edge.data.photos import Photos
from hgkd_edge.data.resize import Geometry, cover, letterbox
from hgkd_edge.errors import DataError, raise_if_out_of_memory, reason_of
from hgkd_edge.files import reserve

__all__ = ["Canvas", "Kept", "StreamedPixels", "allocate", "keep", "memory_bytes", "read_ahead"]

BATCHES_AHEAD = 2
STAND_INS = 100  # after this many unreadable images in a row, the disk is to blame
BLOCK = 4096
DECODER = "simplejpeg\n"  # of JPEGs; other decoders give slightly different pixels
T = TypeVar("T")


class Canvas(NamedTuple):
    """The size that images are decoded to, and how.

    Attributes:
        height: In pixels.
        width: In pixels.
        exact: Produce the pixels of the input contract (`InputSpec`), as `predict` does. Otherwise
            JPEGs are decoded at a coarser scale, for views that resize again.
        geometry: `cover` crops what exceeds the canvas; `letterbox` shows the whole image.
    """

    height: int
    width: int
    exact: bool
    geometry: Geometry = "cover"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width


class Kept(NamedTuple):
    """Images decoded once.

    Attributes:
        pixels: uint8 [n, 3, H_canvas, W_canvas] of the readable ones.
        indices: Indices of the readable images.
        fingerprint: sha256 over their names, labels and contents.
        skipped: Name and reason of unreadable images.
        noted: Name and defect of readable but damaged images.
    """

    pixels: Tensor
    indices: list[int]
    fingerprint: str
    skipped: list[tuple[str, str]]
    noted: list[tuple[str, str]]


def keep(photos: Photos, canvas: Canvas, *, threads: int, bits: int = 0) -> Kept:
    """Decode all images in threads (PIL releases the GIL), skipping unreadable ones.

    Args:
        photos: The images.
        canvas: Size and mode to decode to.
        threads: Number of images decoded at a time.
        bits: Bits used by 16-bit files; 0: all 16.
    """
    pixels = allocate((len(photos), 3, *canvas.size))
    noted: list[tuple[str, str]] = []

    def decode(i: int) -> tuple[str, str]:
        """sha256 of the file, or what is wrong with it."""
        try:
            content = photos.read(i)
            if fault := decode_into(content, pixels[i], canvas, bits=bits):
                noted.append((photos.names[i], fault))
        except Exception as error:  # a broken file may raise anything
            raise_if_out_of_memory(error, photos.names[i])
            return "", reason_of(error)
        return hashlib.sha256(content).hexdigest(), ""

    with ThreadPoolExecutor(threads) as pool:
        outcomes = [
            outcome for block in _blocks(len(photos)) for outcome in pool.map(decode, block)
        ]
    digest = hashlib.sha256(_pixels_by(canvas, bits))
    listed = zip(photos.names, photos.labels.tolist(), outcomes, strict=True)
    for name, label, (content_hash, fault) in listed:
        if not fault:
            digest.update(f"{name}\0{label}\0{content_hash}\n".encode())
    kept = [i for i, (_, fault) in enumerate(outcomes) if not fault]
    for place, i in enumerate(kept):  # close gaps in place: the array may not fit in memory
        if place != i:
            pixels[place] = pixels[i]
    skipped = [(photos.names[i], fault) for i, (_, fault) in enumerate(outcomes) if fault]
    return Kept(
        torch.from_numpy(pixels[: len(kept)]), kept, digest.hexdigest(), skipped, sorted(noted)
    )


class StreamedPixels:
    """Replaces the tensor uint8 [n, 3, H_canvas, W_canvas] if there are too many images to keep.

    Images are decoded on demand, by threads. An unreadable image is replaced by the next readable
    one: the same one in every epoch and process. Its label is that of the image in `taken`.

    Args:
        photos: The images.
        canvas: Size and mode to decode to.
        threads: Number of decoding threads.
        bits: Bits used by 16-bit files; 0: all 16.

    Attributes:
        skipped: Name and reason of each unreadable image found so far.
        noted: Name and defect of each readable but damaged image.
    """

    def __init__(self, photos: Photos, canvas: Canvas, *, threads: int, bits: int = 0) -> None:
        self.photos, self.canvas, self.threads, self.bits = photos, canvas, threads, bits
        self.skipped: list[tuple[str, str]] = []
        self.noted: list[tuple[str, str]] = []
        self._stand_ins: dict[int, int] = {}
        self._known: set[str] = set()
        self._pool = ThreadPoolExecutor(threads)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Pixels uint8 [B, 3, H_canvas, W_canvas] of the images at `indices`, int64 [B].

        Raises:
            DataError: Too many images in a row cannot be read.
        """
        pixels = np.empty((len(indices), 3, *self.canvas.size), np.uint8)
        for _ in self._pool.map(self._fill, indices.tolist(), pixels):
            pass  # an error is raised here
        return torch.from_numpy(pixels)

    def taken(self, indices: Tensor) -> Tensor:
        """Which images were read when those at `indices`, int64 [B], were asked for."""
        return torch.tensor([self._stand_ins.get(i, i) for i in indices.tolist()])

    def select(self, indices: Tensor) -> StreamedPixels:
        """A selection of the images."""
        photos = self.photos.select(indices.tolist())
        part = StreamedPixels(photos, self.canvas, threads=self.threads, bits=self.bits)
        part.skipped += self.skipped
        part.noted += self.noted
        part._known |= self._known
        return part

    def fingerprint(self) -> str:
        """sha256 over names, labels and file sizes; no file is read."""
        digest = hashlib.sha256(_pixels_by(self.canvas, self.bits) + self.photos.version.encode())
        blocks, labels = _blocks(len(self)), self.photos.labels.tolist()
        sizes = self._pool.map(lambda block: [self.photos.size(i) for i in block], blocks)
        for block, row in zip(blocks, sizes, strict=True):
            for i, size in zip(block, row, strict=True):
                digest.update(f"{self.photos.names[i]}\0{labels[i]}\0{size}\n".encode())
        return f"names-and-sizes:{digest.hexdigest()}"

    def _fill(self, i: int, pixels: np.ndarray) -> None:
        """Decode image i, or the next readable one, into uint8 [3, H_canvas, W_canvas]."""
        tries = min(len(self), STAND_INS)
        for candidate in ((i + k) % len(self) for k in range(tries)):
            name = self.photos.names[candidate]
            try:
                content = self.photos.read(candidate)
                fault = decode_into(content, pixels, self.canvas, bits=self.bits)
            except Exception as error:  # a broken file may raise anything
                raise_if_out_of_memory(error, name)
                self._add(self.skipped, name, reason_of(error))
                continue
            if fault and self._add(self.noted, name, fault) and len(self.noted) == 1:
                warn(f"{name}: {fault} (others like it are listed in manifest.json)")
            if candidate != i:
                self._stand_ins[i] = candidate
            return
        name, reason = self.skipped[-1]
        raise DataError(
            f"{tries} images in a row cannot be read; the last, {name}: {reason}",
            hint="check that the disk is mounted and that these are image files",
        )

    def _add(self, to: list[tuple[str, str]], name: str, reason: str) -> bool:
        """Note an image; returns False if it was noted before."""
        with self._lock:
            if name in self._known:
                return False
            self._known.add(name)
            to.append((name, reason))
            return True


def read_ahead(
    load: Callable[[Tensor], T], order: Iterable[Tensor], *, ahead: int = BATCHES_AHEAD
) -> Generator[T, None, None]:
    """`load` each batch of indices in the background, and yield the results in order."""
    pool = ThreadPoolExecutor(ahead)
    waiting: deque[Future[T]] = deque()
    try:
        for indices in order:
            waiting.append(pool.submit(load, indices))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _pixels_by(canvas: Canvas, bits: int) -> bytes:
    """What a fingerprint records of how pixels are decoded."""
    scaling = f"{bits} bits\n" if 0 < bits < 16 else ""
    return f"{scaling}{'' if canvas.exact else DECODER}".encode()


def _blocks(count: int) -> list[range]:
    """0 ... count-1 in chunks: a pool queues all its tasks at once, and millions are too many."""
    return [range(i, min(i + BLOCK, count)) for i in range(0, count, BLOCK)]


def memory_bytes() -> int:
    """Memory available to this process: the machine's, or its container's if that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file, or it says "max"
            machine = min(machine, int(Path(limit).read_text()))
    return machine


def allocate(shape: tuple[int, ...]) -> np.ndarray:
    """uint8 zeros: in memory, or in an unnamed temporary file if memory is short.

    Raises:
        DataError: The disk has no room for the file.
    """
    size = math.prod(shape)
    if size < memory_bytes() // 4:
        return np.zeros(shape, np.uint8)
    with tempfile.TemporaryFile() as file:  # the mapping stays valid after closing
        _reserve(file.fileno(), size)
        return np.memmap(file, np.uint8, "w+", shape=shape)


def _reserve(file: int, size: int) -> None:
    try:
        reserve(file, size)
    except OSError as error:
        raise DataError(
            f"{tempfile.gettempdir()}: {error.strerror}: decoded images take {size / 1e9:.1f} GB",
            hint="set TMPDIR to a folder on a larger disk, or data.decode to streaming",
        ) from error


def decode_into(content: bytes, pixels: np.ndarray, canvas: Canvas, *, bits: int = 0) -> str:
    """Decode an image file.

    Args:
        content: The file's bytes.
        pixels: Output, uint8 [3, H_canvas, W_canvas].
        canvas: Size and mode to decode to.
        bits: Bits used by 16-bit files; 0: all 16.

    Returns:
        What is wrong with the file although it could be read; '' if nothing is.
    """
    height, width = canvas.size
    with open_image(content) as image:
        turn = turn_of(image)
        # Convert while the image is open: large images are decoded one at a time to limit memory.
        if canvas.exact or canvas.geometry == "letterbox":
            if not canvas.exact:
                turn.draft(image, (2 * height, 2 * width))
            upright = decode_rgb(image, content, turn, bits=bits)
            fit = cover if canvas.geometry == "cover" else letterbox
            pixels[:] = np.asarray(fit(upright, canvas.size)).transpose(2, 0, 1)
        else:
            whole = _coarse_jpeg(image, content, turn, canvas.size)
            if whole is None:
                turn.draft(image, canvas.size)
                whole = np.array(decode_rgb(image, content, turn, bits=bits))
            pixels[:] = _covering(whole, canvas.size)
    return turn.fault


def _coarse_jpeg(
    image: Image.Image, content: bytes, turn: Turn, canvas: tuple[int, int]
) -> np.ndarray | None:
    """Decode an upright color JPEG at the coarsest scale that covers the canvas, uint8 [H, W, 3].

    simplejpeg returns the pixels without the padding and copying that Pillow does. Its fast
    transform and chroma upsampling make no visible difference after the resize that follows.

    Returns:
        None for other files and for damaged JPEGs: Pillow handles those.
    """
    as_stored = turn.orientation == 1 and (image.height, image.width) == turn.stored
    if image.format != "JPEG" or image.mode != "RGB" or not as_stored:
        return None
    # Of the coarser scales only halves, quarters and eighths are fast.
    scale = {"min_height": canvas[0], "min_width": canvas[1], "min_factor": 2}
    try:
        height, width, *_ = decode_jpeg_header(content, **scale)
        pixels = np.empty((height, width, 3), np.uint8)
        return decode_jpeg(content, fastdct=True, fastupsample=True, buffer=pixels, **scale)
    except ValueError:
        return None


def _covering(image: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """The center of an image uint8 [H, W, 3] on a canvas: uint8 [3, H_canvas, W_canvas].

    Bicubic and antialiased, by torch: four times as fast as Pillow's (`benchmarks.decode`).
    """
    (height, width), (rows, columns) = image.shape[:2], canvas
    kept_height = max(1, min(height, width * rows // columns))
    kept_width = max(1, min(width, height * columns // rows))
    top, left = (height - kept_height) // 2, (width - kept_width) // 2
    kept = torch.from_numpy(image[top : top + kept_height, left : left + kept_width])
    planes = kept[None].permute(0, 3, 1, 2)  # this way, torch recognizes channels-last
    resized = torch.nn.functional.interpolate(planes, canvas, mode="bicubic", antialias=True)
    return resized[0].numpy()
