"""Reads and decodes annotated images: letterboxes them and transforms their labels to match."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hgkd_edge.data.annotations.listing import Annotated, Box, Fault, Listing
from hgkd_edge.data.annotations.turns import Turns, meant_upright, size_of
from hgkd_edge.data.box_labels import BoxLabels
from hgkd_edge.data.decode import Canvas, StreamedPixels, allocate, decode_into
from hgkd_edge.data.depth import settled_bits
from hgkd_edge.data.images import open_image, read_image_file
from hgkd_edge.data.orientation import Turn, turn_of
from hgkd_edge.data.photos import UNLABELED, Photos
from hgkd_edge.data.resize import IGNORED, letterbox
from hgkd_edge.data.sources import ImageSource, decoding_threads, streams
from hgkd_edge.errors import DataError, raise_if_out_of_memory, reason_of
from hgkd_edge.recipe_sections import DataConfig

__all__ = ["AnnotatedPhotos", "FilledBoxes", "FilledMaps", "Labels", "Reader", "StreamedMaps"]

Size = tuple[int, int]  # height and width
# An annotation and the size it is for -> a label map in those pixels, and what was skipped.
Reader = Callable[[Any, Size], tuple[np.ndarray, list[Fault]]]


class Labels(Protocol):
    """The labels of a split's images, read image by image by several threads."""

    def fill(
        self, i: int, annotation: Any, turn: Turn, upright: bool
    ) -> tuple[np.ndarray, list[Fault]]:
        """Read the label of image i.

        Args:
            i: Index of the image.
            annotation: As listed.
            turn: How EXIF turns the image; the canvas shows it upright.
            upright: Whether the annotation is for the upright image.

        Returns:
            The label on the canvas, and what is wrong with the annotation.
        """

    def kept(self, indices: list[int]) -> Any:
        """`ImageSource.labels` of the images at `indices`, which rise."""


class FilledBoxes(Labels):
    """Boxes, which are kept whether images are streamed or not.

    Args:
        count: Number of images.
        read: Returns the boxes of one image on the canvas, float32 [m, 5], and what is wrong.
    """

    def __init__(
        self,
        count: int,
        read: Callable[[list[Box], Turn, bool], tuple[np.ndarray, list[Fault]]],
    ) -> None:
        self.read, self.boxes = read, [np.zeros((0, 5), np.float32)] * count

    def fill(
        self, i: int, annotation: Any, turn: Turn, upright: bool
    ) -> tuple[np.ndarray, list[Fault]]:
        self.boxes[i], faults = self.read(annotation, turn, upright)
        return self.boxes[i], faults

    def kept(self, indices: list[int]) -> BoxLabels:
        return BoxLabels([self.boxes[i] for i in indices])


class FilledMaps(Labels):
    """Label maps, kept or streamed.

    Args:
        count: Number of images.
        read: Returns a label map in its own size, uint8 [H, W].
        canvas: Height and width.
        background: The highest class that is no object; -1 if all are.
        stream: Read label maps again during training instead of keeping them.
        threads: Number of threads that do so.
    """

    def __init__(
        self,
        count: int,
        read: Reader,
        canvas: Size,
        *,
        background: int,
        stream: bool,
        threads: int,
    ) -> None:
        self.read, self.canvas, self.background, self.threads = read, canvas, background, threads
        self.maps = None if stream else allocate((count, *canvas))
        self.sources: dict[int, _MapSource] = {}
        self.counts: list[tuple[int, int, bool]] = []  # pixels, ignored pixels, any object

    def fill(
        self, i: int, annotation: Any, turn: Turn, upright: bool
    ) -> tuple[np.ndarray, list[Fault]]:
        own, faults = self.read(annotation, size_of(turn, upright=upright))
        shown = _on_canvas(own, turn, self.canvas, upright=upright)
        objects = bool(((shown > self.background) & (shown != IGNORED)).any())
        self.counts.append((own.size, int((own == IGNORED).sum()), objects))
        if self.maps is None:
            self.sources[i] = _MapSource(annotation, turn, upright)
        else:
            self.maps[i] = shown
        return shown, faults

    def kept(self, indices: list[int]) -> Tensor | StreamedMaps:
        if self.maps is None:
            chosen = [self.sources[i] for i in indices]
            return StreamedMaps(chosen, self.read, self.canvas, threads=self.threads)
        for place, i in enumerate(indices):  # in place: the array may not fit in memory
            if place != i:
                self.maps[place] = self.maps[i]
        return torch.from_numpy(self.maps[: len(indices)])

    @property
    def ignored(self) -> float:
        """Share of the images' own pixels without a class."""
        pixels, ignored = (sum(count[k] for count in self.counts) for k in (0, 1))
        return ignored / max(1, pixels)

    @property
    def objects(self) -> bool:
        """Whether a canvas shows a pixel of an object."""
        return any(found for *_, found in self.counts)


class _MapSource(NamedTuple):
    """What a label map is read from; as in `Labels.fill`."""

    annotation: Any
    turn: Turn
    upright: bool


class StreamedMaps:
    """Replaces the tensor uint8 [n, H_canvas, W_canvas] of label maps that are not kept.

    Args:
        sources: What each is read from.
        read: Returns a label map in its own size.
        canvas: Height and width.
        threads: Number of reading threads.
    """

    ndim = 3

    def __init__(
        self, sources: list[_MapSource], read: Reader, canvas: Size, *, threads: int
    ) -> None:
        self.sources, self.read, self.canvas, self.threads = sources, read, canvas, threads
        self._pool = ThreadPoolExecutor(threads)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Label maps uint8 [B, H_canvas, W_canvas] of the images at `indices`, int64 [B].

        Raises:
            DataError: A label map can no longer be read.
        """
        maps = self._pool.map(self._one, indices.tolist())
        return torch.from_numpy(np.stack(list(maps)))

    def select(self, indices: Tensor) -> StreamedMaps:
        """The label maps of selected images, int64 [m]."""
        chosen = [self.sources[i] for i in indices.tolist()]
        return StreamedMaps(chosen, self.read, self.canvas, threads=self.threads)

    def _one(self, i: int) -> np.ndarray:
        annotation, turn, upright = self.sources[i]
        try:
            own, _ = self.read(annotation, size_of(turn, upright=upright))
        except Exception as error:  # a broken file may raise anything
            raise_if_out_of_memory(error, annotation)
            raise DataError(
                f"a label map was readable and no longer is: {reason_of(error)}",
                hint="check that the disk is mounted and that nothing changes the data set",
            ) from error
        return _on_canvas(own, turn, self.canvas, upright=upright)


def _on_canvas(labels: np.ndarray, turn: Turn, canvas: Size, *, upright: bool) -> np.ndarray:
    """A label map uint8 [H, W] on the canvas: [H_canvas, W_canvas], 255 around it."""
    image = Image.fromarray(labels)
    if not upright:
        image = turn.apply(image)
    nearest = Image.Resampling.NEAREST
    return np.asarray(letterbox(image, canvas, fill=IGNORED, resample=nearest))


class _Outcome(NamedTuple):
    """The result of reading one image.

    Attributes:
        digest: sha256 of image and label; '' if the image cannot be used.
        faults: What is wrong with its annotation.
        noted: What is wrong with an image that is still used.
        turned: Whether EXIF turns it.
        upright: Whether its annotation is for the upright image; None if unknown.
    """

    digest: str
    faults: list[Fault]
    noted: str = ""
    turned: bool = False
    upright: bool | None = True


@dataclass
class AnnotatedPhotos:
    """Reads the images of a data set split by split, with the same decisions for all splits.

    Attributes:
        config: How images are decoded.
        listing: Images, classes, and the errors found so far.
        stated_size: Returns the size that an image's annotation states, if any.
        stated_by: What states it, for messages.
        turns: How annotations of images that EXIF turns are interpreted.
    """

    config: DataConfig
    listing: Listing[Any]
    stated_size: Callable[[Annotated[Any]], Size | None]
    stated_by: str = "its annotations are for"
    turns: Turns = field(default_factory=Turns)

    def __post_init__(self) -> None:
        self.threads = decoding_threads(self.config)
        photos = self.listing.splits.get("train", [])
        self.bits, self.bits_remark = settled_bits(
            lambda i: read_image_file(photos[i].file),
            [str(photo.file) for photo in photos],
            self.config.bits,
            threads=self.threads,
        )

    def stream(self) -> bool:
        """Whether images are decoded during training instead of now."""
        count = sum(len(photos) for photos in self.listing.splits.values())
        height, width = self.config.size
        return streams(self.config, 4 * height * width * count)  # an image and a label map

    def read(self, split: str, labels: Labels) -> ImageSource:
        """Read a split's labels, and its images unless they are streamed.

        Unreadable images are skipped. Streamed images are only opened here. One that cannot be
        decoded later is replaced, see `StreamedPixels`.
        """
        photos, threads = self.listing.splits[split], self.threads
        canvas = Canvas(*self.config.size, exact=split != "train", geometry="letterbox")
        stream = self.stream()
        pixels = None if stream else allocate((len(photos), 3, *self.config.size))

        def look(i: int, default: bool | None = None) -> _Outcome:
            return self._look(photos[i], i, pixels, labels, default, canvas)

        with ThreadPoolExecutor(threads) as pool:
            outcomes = list(pool.map(look, range(len(photos))))
            self._count(outcomes)
            open_ = [i for i, outcome in enumerate(outcomes) if outcome.upright is None]
            decided = pool.map(lambda i: look(i, self.turns.default), open_)
            for i, outcome in zip(open_, decided, strict=True):
                outcomes[i] = outcome
        kept = [i for i, outcome in enumerate(outcomes) if outcome.digest]
        digest = hashlib.sha256()
        for i in kept:
            digest.update(f"{photos[i].name}\0{outcomes[i].digest}\n".encode())
        source = ImageSource(
            images=self._stream([photos[i] for i in kept], canvas)
            if pixels is None
            else _closed(pixels, kept),
            labels=labels.kept(kept),
            names=[photos[i].name for i in kept],
            classes=self.listing.classes,
            fingerprint=digest.hexdigest(),
            decided={"data.bits": self.bits} if self.bits else {},
        )
        if isinstance(source.images, StreamedPixels):  # it adds what it finds later
            source.skipped, source.noted = source.images.skipped, source.images.noted
        source.skipped += self.listing.faults.get(split, [])
        source.skipped += [fault for outcome in outcomes for fault in outcome.faults]
        source.noted += [
            (str(photos[i].file), outcomes[i].noted) for i in kept if outcomes[i].noted
        ]
        return source

    def remarks(self) -> list[str]:
        """What was decided, one line each."""
        return [line for line in (self.bits_remark, self.turns.remark()) if line]

    def _stream(self, photos: list[Annotated[Any]], canvas: Canvas) -> StreamedPixels:
        listed = Photos(
            names=[str(photo.file) for photo in photos],
            labels=np.full(len(photos), UNLABELED),
            read=lambda i: read_image_file(photos[i].file),
            size=lambda i: photos[i].file.stat().st_size,
        )
        return StreamedPixels(listed, canvas, threads=self.threads, bits=self.bits)

    def _look(
        self,
        photo: Annotated[Any],
        i: int,
        pixels: np.ndarray | None,
        labels: Labels,
        default: bool | None,
        canvas: Canvas,
    ) -> _Outcome:
        """Read image i into `pixels` (unless None) and `labels`, both upright, as in `predict`.

        An image is not read if neither its annotation nor a `default` states its orientation.
        """
        try:
            content = read_image_file(photo.file)
            with open_image(content) as image:
                turn = turn_of(image)
            upright = meant_upright(turn, self.stated_size(photo), by=self.stated_by)
            turned = turn.orientation > 1
            if upright is None:
                upright = default if turned else True
            if upright is None:
                return _Outcome("", [], turned=True, upright=None)
            if pixels is not None:
                decode_into(content, pixels[i], canvas, bits=self.bits)
            label, faults = labels.fill(i, photo.annotation, turn, upright)
        except Exception as error:  # a broken file may raise anything
            raise_if_out_of_memory(error, photo.file)
            return _Outcome(
                "", [(str(photo.file), f"{error or type(error).__name__}; image skipped")]
            )
        digest = hashlib.sha256(content + label.tobytes()).hexdigest()
        return _Outcome(digest, faults, turn.fault, turned, upright)

    def _count(self, outcomes: list[_Outcome]) -> None:
        for outcome in outcomes:
            if outcome.turned:
                self.turns.count(outcome.upright)


def _closed(pixels: np.ndarray, kept: list[int]) -> Tensor:
    """The images at `kept`, moved together in place: the array may not fit in memory."""
    for place, i in enumerate(kept):
        if place != i:
            pixels[place] = pixels[i]
    return torch.from_numpy(pixels[: len(kept)])
