"""Image sources: a sequence of (image, label), with a fixed image for each index.

A source decodes to a fixed *canvas* of uint8 pixels, which for training is slightly larger than the
network input. Everything random (crop, flip, mask) happens later, on the device, from the step's
own random numbers. A source therefore holds no random state, and a run can resume at any step.

Where the images are stored is handled in `folder.py`, `shards.py` and `hub.py`. Whether they are
decoded once or during training is handled in `decode.py`. Training code that asks for pixels sees
neither.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from hgkd_edge import processes
from hgkd_edge.cells import counted
from hgkd_edge.data.box_labels import BoxLabels
from hgkd_edge.data.csv_list import is_table, table_photos
from hgkd_edge.data.decode import Canvas, StreamedPixels, keep, memory_bytes, read_ahead
from hgkd_edge.data.depth import settled_bits
from hgkd_edge.data.folder import bundled_photos, folder_photos
from hgkd_edge.data.hub import hub_photos
from hgkd_edge.data.names import a_few
from hgkd_edge.data.photos import UNLABELED, Listing, Photos
from hgkd_edge.data.shards import shard_photos
from hgkd_edge.data.spread import evenly
from hgkd_edge.errors import DataError
from hgkd_edge.recipe_sections import DataConfig

__all__ = [
    "ImageSource",
    "canvas_of",
    "decoding_threads",
    "held_out_split",
    "how_to_label",
    "list_photos",
    "open_splits",
    "streams",
    "unlearned_classes",
    "why_unlabeled",
]

LISTINGS: dict[str, Callable[[DataConfig], Listing]] = {
    "bundled": bundled_photos,
    "folder": folder_photos,
    "webdataset": shard_photos,
    "hf": hub_photos,
    "table": table_photos,
}


@dataclass
class ImageSource:
    """Images of one split.

    Attributes:
        images: uint8 [n, 3, H_canvas, W_canvas], or an object that decodes them when indexed by
            int64 [B] or split into batches with `split`.
        labels: As in `Photos.labels`; or label maps, or `BoxLabels`, see `annotations`.
        names: File names, relative to the source's root.
        classes: Class names; empty when the images are unlabeled.
        fingerprint: sha256 that changes exactly when the data change: over names, labels and
            contents of images kept in memory, over names, labels and sizes of streamed files.
        skipped: Files that could not be read (if streamed: so far), with the reason.
        noted: Files that were read but are damaged, with what is wrong.
        remarks: What was decided about the data, one line each.
        decided: The settings that were decided: key -> the value that `auto` resolved to.
        ignored: Share of pixels without a class; None if there are no label maps.
    """

    images: torch.Tensor | StreamedPixels
    labels: torch.Tensor
    names: list[str]
    classes: list[str]
    fingerprint: str
    skipped: list[tuple[str, str]] = field(default_factory=list)
    noted: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    decided: dict[str, object] = field(default_factory=dict)
    ignored: float | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def bits(self) -> int:
        """Bits used by 16-bit files; 0 if there are none, or the setting was not `auto`."""
        bits = self.decided.get("data.bits", 0)
        assert isinstance(bits, int)
        return bits

    @property
    def multi_hot(self) -> bool:
        """Whether an image may have several labels or none: `labels` are 0 and 1, [n, classes]."""
        return self.labels.ndim == 2

    @property
    def one_class(self) -> bool:
        """Whether every image has exactly one class, as k-NN and linear probe need."""
        return self.labels.ndim == 1 and self.labeled

    @property
    def labeled(self) -> bool:
        """Whether every image has a label, or, where some may have none, whether any has.

        Boxes and label maps need one box, or one pixel that is not ignored.
        """
        labels: Any = self.labels
        if self.multi_hot:
            return bool(self.labels.any())
        if isinstance(labels, BoxLabels):
            return any(len(boxes) for boxes in labels.photos)
        if self.labels.ndim > 1:
            return len(self) > 0 and self.ignored != 1
        return len(self.classes) > 1 and bool((self.labels != UNLABELED).all())

    @property
    def streamed(self) -> bool:
        """Whether images are decoded on demand."""
        return isinstance(self.images, StreamedPixels)

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels uint8 [B, 3, H_canvas, W_canvas] and labels [B, ...] of the images int64 [B].

        An unreadable image of a streamed source is replaced, together with its label.
        """
        images = self.images[indices]
        if isinstance(self.images, StreamedPixels):
            indices = self.images.taken(indices)
        return images, self.labels[indices]

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """`batch` of all images in order, at most `size` at a time, read ahead."""
        return read_ahead(self.batch, torch.arange(len(self)).split(size))

    def subset(self, indices: torch.Tensor) -> ImageSource:
        """The images at `indices`, int64 [m]."""
        chosen = hashlib.sha256(f"{self.fingerprint}\0{indices.tolist()}".encode())
        labels: Any = self.labels
        part = replace(
            self,
            labels=labels[indices] if isinstance(labels, torch.Tensor) else labels.select(indices),
            names=[self.names[i] for i in indices.tolist()],
            fingerprint=chosen.hexdigest(),
        )
        if isinstance(self.images, StreamedPixels):
            part.images = self.images.select(indices)
            part.skipped, part.noted = part.images.skipped, part.images.noted
        else:
            part.images = self.images[indices]
        return part

    def sample(self, count: int) -> ImageSource:
        """At most `count` of the images, evenly spaced."""
        if len(self) <= count:
            return self
        return self.subset(torch.tensor(evenly(len(self), count), dtype=torch.int64))


def canvas_of(split: str, size: tuple[int, int]) -> Canvas:
    """The canvas that a split's images are decoded to.

    Training images get a margin for random crops, 8/7 of the network input (256 for 224). Others
    are decoded as `predict` does, so that a score and a prediction use the same pixels.
    """
    if split == "train":
        return Canvas(round(size[0] * 8 / 7), round(size[1] * 8 / 7), exact=False)
    return Canvas(*size, exact=True)


def list_photos(config: DataConfig) -> Listing:
    """List a recipe's images by split, without reading them.

    Raises: as `open_splits`.
    """
    return LISTINGS["table" if is_table(config) else config.source](config)


def open_splits(config: DataConfig) -> dict[str, ImageSource]:
    """Open a recipe's images: `train`, and a held-out split named `test`, `val` or `holdout`.

    Raises:
        DataError: The data are missing, or hold no image that can be read.
        MissingPackageError: A package that reads this kind of source is not installed.
    """
    listing = list_photos(config)
    count = sum(len(photos) for photos in listing.splits.values())
    stream = streams(config, 3 * math.prod(canvas_of("train", config.size).size) * count)
    threads = decoding_threads(config)
    training = listing.splits.get("train") or next(iter(listing.splits.values()))
    bits, why = settled_bits(training.read, training.names, config.bits, threads=threads)
    open_split = partial(_stream if stream else _keep, threads=threads, bits=bits)
    splits = {
        name: open_split(photos, listing.classes, canvas_of(name, config.size))
        for name, photos in listing.splits.items()
    }
    for source in splits.values():
        source.decided |= {"data.bits": bits} if bits else {}
    _check_readable(config, splits.get("train"))
    splits["train"].remarks += [*listing.remarks, *_remark_labels(splits), *([why] if why else [])]
    splits["train"].skipped[:0] = listing.unused
    return splits


def streams(config: DataConfig, size: int) -> bool:
    """Whether images that take `size` bytes decoded are decoded during training."""
    if config.decode == "auto":
        return size * processes.local_count() > memory_bytes() // 4
    return config.decode == "streaming"


def _remark_labels(splits: dict[str, ImageSource]) -> list[str]:
    """How the label sets of the splits differ, one line each."""
    train = splits["train"]
    if not train.classes:
        return []
    learned, remarks = _classes_in(train), list[str]()
    for name, source in splits.items():
        present = _classes_in(source)
        bare = 0 if source.multi_hot else int((source.labels == UNLABELED).sum())
        if bare and len(splits) > 1:
            remarks.append(f"{bare} of {len(source)} images of split '{name}' have no label")
        if name == "train" or not present:
            continue
        if reported := unlearned_classes(train, source):
            remarks.append(f"split '{name}': {reported}")
        if missing := sorted(learned - present):
            shown = a_few([source.classes[i] for i in missing])
            remarks.append(
                f"classes without an image in split '{name}': {shown}, so not in its scores"
            )
    return [f"warning: {remark}" for remark in remarks]


def _classes_in(source: ImageSource) -> set[int]:
    """Numbers of the classes that occur."""
    labels = source.labels
    if source.multi_hot:
        return set(labels.any(dim=0).nonzero().flatten().tolist())
    return set(labels.tolist()) - {UNLABELED}


def unlearned_classes(train: ImageSource, test: ImageSource) -> str:
    """Classes in `test` that `train` lacks; '' if none.

    Images of these classes count in every score, but no model can predict them.
    """
    new = sorted(_classes_in(test) - _classes_in(train))
    if not new:
        return ""
    labels, shown = test.labels, a_few([test.classes[i] for i in new])
    of_new = labels[:, new].any(dim=1) if test.multi_hot else torch.isin(labels, torch.tensor(new))
    return (
        f"{int(of_new.sum())} of {len(test)} images are of classes without a training image "
        f"({shown}): they count as errors in every score"
    )


def decoding_threads(config: DataConfig) -> int:
    """Number of decoding threads in this process."""
    cores = max(1, (os.cpu_count() or 1) // processes.local_count())
    return cores if config.workers == "auto" else max(1, config.workers)


def held_out_split(splits: dict[str, ImageSource], *, labeled: bool = False) -> str | None:
    """Name of the held-out split, the most independent first.

    Args:
        splits: By name.
        labeled: Skip splits that cannot be scored, such as `test/` without class folders.
    """
    for name in ("test", "val", "holdout"):
        source = splits.get(name)
        if source is not None and len(source) and (source.labeled or not labeled):
            return name
    return None


def how_to_label(config: DataConfig) -> str:
    """How to label the images of a source, as a hint."""
    if is_table(config):
        return f"give {config.path} a column 'label' with one class in every line"
    hints = {
        "webdataset": "give every sample of the shards a .cls file with its class",
        "hf": "name a dataset that has a column 'label' with a value in every row",
    }
    return hints.get(config.source, "keep images in one subfolder per class")


def why_unlabeled(source: ImageSource) -> str:
    """Why a source is not `labeled`; '' if it is."""
    if source.labeled:
        return ""
    if not len(source):
        return "there are no images"
    if source.multi_hot:
        return f"none of {len(source)} images has a label"
    if source.labels.ndim > 1:
        lacks = "box" if source.ignored is None else "pixel that is not ignored"
        return f"no {lacks} in {counted(len(source), 'image')}"
    if len(source.classes) < 2:
        return "every image is of one class, or of none"
    bare = (source.labels == UNLABELED).nonzero().flatten().tolist()
    count = f"{len(bare)} of {len(source)} images"
    return f"without a label, or outside class folders: {count}, such as {source.names[bare[0]]}"


def _keep(
    photos: Photos, classes: list[str], canvas: Canvas, threads: int, bits: int
) -> ImageSource:
    kept = keep(photos, canvas, threads=threads, bits=bits)
    return ImageSource(
        images=kept.pixels,
        labels=torch.from_numpy(photos.labels[kept.indices]),
        names=[photos.names[i] for i in kept.indices],
        classes=classes,
        fingerprint=kept.fingerprint,
        skipped=kept.skipped,
        noted=kept.noted,
    )


def _stream(
    photos: Photos, classes: list[str], canvas: Canvas, threads: int, bits: int
) -> ImageSource:
    images = StreamedPixels(photos, canvas, threads=threads, bits=bits)
    return ImageSource(
        images=images,
        labels=torch.from_numpy(photos.labels),
        names=list(photos.names),
        classes=classes,
        fingerprint=images.fingerprint(),
        skipped=images.skipped,
        noted=images.noted,
    )


def _check_readable(config: DataConfig, source: ImageSource | None) -> None:
    """Refuse a training split without readable images."""
    root = "the bundled photos" if config.source == "bundled" else str(config.path)
    if source is not None and len(source):
        source.images[torch.tensor([0])]  # a streamed source has read nothing yet
        return
    reasons = source.skipped if source is not None else []
    raise DataError(
        f"{root}: none of {len(reasons)} image files can be read"
        + (f"; the first, {reasons[0][0]}: {reasons[0][1]}" if reasons else ""),
        hint="the training split needs readable .jpg, .png, .webp, .bmp, .tif or .gif files",
    )
