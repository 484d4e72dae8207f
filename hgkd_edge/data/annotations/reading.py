"""Reads and decodes annotated images: letterboxes them and transforms their labels to match."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, MutableSequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from hgkd_edge.data.annotations.listing import Annotated, Fault, Listing
from hgkd_edge.data.annotations.turns import Turns, meant_upright, size_of
from hgkd_edge.data.decode import allocate
from hgkd_edge.data.depth import decode_rgb, settled_bits
from hgkd_edge.data.geometry import IGNORED, letterbox
from hgkd_edge.data.images import Turn, open_image, read_image_file, turn_of
from hgkd_edge.data.sources import ImageSource, decoding_threads
from hgkd_edge.recipe import DataConfig

__all__ = ["AnnotatedPhotos", "Labels", "LetterboxedMaps", "Placer", "Reader"]

Size = tuple[int, int]  # height and width
# An annotation and the size it is for -> a label in those pixels, and what was skipped.
Reader = Callable[[Any, Size], tuple[np.ndarray, list[Fault]]]
# An annotation, its image's turn, and whether it is for the upright image -> its label on the
# canvas (which shows the image upright), and what was skipped.
Placer = Callable[[Any, Turn, bool], tuple[np.ndarray, list[Fault]]]
Labels = MutableSequence[np.ndarray] | np.ndarray


class LetterboxedMaps:
    """Reads label maps onto the canvas and counts ignored pixels.

    Args:
        read: Returns a label map in its own size, uint8 [H, W].
        canvas: Height and width.
    """

    def __init__(self, read: Reader, canvas: Size) -> None:
        self.read, self.canvas = read, canvas
        self.counts: list[tuple[int, int]] = []  # pixels and ignored pixels of each image

    def __call__(
        self, annotation: Any, turn: Turn, upright: bool
    ) -> tuple[np.ndarray, list[Fault]]:
        """The label map on the canvas, uint8 [H_canvas, W_canvas]; 255 around it."""
        labels, faults = self.read(annotation, size_of(turn, upright=upright))
        self.counts.append((labels.size, int((labels == IGNORED).sum())))
        image = Image.fromarray(labels)
        if not upright:
            image = turn.apply(image)
        nearest = Image.Resampling.NEAREST
        return np.asarray(letterbox(image, self.canvas, fill=IGNORED, resample=nearest)), faults

    @property
    def ignored(self) -> float:
        """Share of the images' own pixels without a class."""
        ignored = sum(ignored for _, ignored in self.counts)
        return ignored / max(1, sum(pixels for pixels, _ in self.counts))


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

    def read(self, split: str, labels: Labels, read: Placer) -> ImageSource:
        """Decode a split's images and fill `labels` in order; the caller sets the source's labels.

        Unreadable images are skipped, and their gaps in images and labels are closed.
        """
        photos = self.listing.splits[split]
        pixels = allocate((len(photos), 3, *self.config.size))

        def decode(i: int, default: bool | None = None) -> _Outcome:
            return self._decode(photos[i], i, pixels, labels, read, default, split == "train")

        with ThreadPoolExecutor(self.threads) as pool:
            outcomes = list(pool.map(decode, range(len(photos))))
            self._count(outcomes)
            open_ = [i for i, outcome in enumerate(outcomes) if outcome.upright is None]
            for i, outcome in zip(
                open_, pool.map(lambda i: decode(i, self.turns.default), open_), strict=True
            ):
                outcomes[i] = outcome
        kept = [i for i, outcome in enumerate(outcomes) if outcome.digest]
        for gap, i in enumerate(kept):
            if gap != i:
                pixels[gap], labels[gap] = pixels[i], labels[i]
        digest = hashlib.sha256()
        for i in kept:
            digest.update(f"{photos[i].name}\0{outcomes[i].digest}\n".encode())
        met = [fault for outcome in outcomes for fault in outcome.faults]
        return ImageSource(
            images=torch.from_numpy(pixels[: len(kept)]),
            labels=torch.empty(0),
            names=[photos[i].name for i in kept],
            classes=self.listing.classes,
            fingerprint=digest.hexdigest(),
            skipped=[*self.listing.faults.get(split, []), *met],
            noted=[(str(photos[i].file), outcomes[i].noted) for i in kept if outcomes[i].noted],
            decided={"data.bits": self.bits} if self.bits else {},
        )

    def remarks(self) -> list[str]:
        """What was decided, one line each."""
        return [line for line in (self.bits_remark, self.turns.remark()) if line]

    def _decode(
        self,
        photo: Annotated[Any],
        i: int,
        pixels: np.ndarray,
        labels: Labels,
        read: Placer,
        default: bool | None,
        coarse: bool,
    ) -> _Outcome:
        """Read image i into `pixels` and `labels`, both upright, as `predict` sees it.

        An image is not read if neither its annotation nor a `default` states its orientation.
        Held-out images (`coarse` is False) are decoded exactly as in `predict`.
        """
        height, width = self.config.size
        try:
            content = read_image_file(photo.file)
            stated = self.stated_size(photo)
            with open_image(content) as image:
                turn = turn_of(image)
                upright = meant_upright(turn, stated, by=self.stated_by)
                turned = turn.orientation > 1
                if upright is None:
                    upright = default if turned else True
                if upright is None:
                    return _Outcome("", [], turned=True, upright=None)
                if coarse:
                    turn.draft(image, (height * 2, width * 2))
                seen = decode_rgb(image, content, turn, bits=self.bits)
                canvas = letterbox(seen, (height, width))
            labels[i], faults = read(photo.annotation, turn, upright)
        except Exception as error:  # a broken file may raise anything
            return _Outcome(
                "", [(str(photo.file), f"{error or type(error).__name__}; image skipped")]
            )
        pixels[i] = np.asarray(canvas).transpose(2, 0, 1)
        digest = hashlib.sha256(content + labels[i].tobytes()).hexdigest()
        return _Outcome(digest, faults, turn.fault, turned, upright)

    def _count(self, outcomes: list[_Outcome]) -> None:
        for outcome in outcomes:
            if outcome.turned:
                self.turns.count(outcome.upright)
