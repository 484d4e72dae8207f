"""How every arm is fine-tuned and scored on one data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["PROTOCOLS", "Protocol", "fresh", "training_photos"]


@dataclass(frozen=True)
class Protocol:
    """Fine-tuning on one data set.

    Args:
        task: Task as in `hgkd-edge finetune --task`.
        epochs: Epochs by share of the training labels: fewer images are seen more often.
        batch_size: Images per update.
        draws: Number of random draws by share, if the selection of images strongly affects the
            score; the mean is reported. Otherwise once.
        listing: Text file of the training images' names, if the data are not class folders.
        images: Folder of the images, likewise.
        per_class: Take only this many training images of each class, and the last 300 of each class
            as `val`, a split for selection. The data set's own `val` becomes `test`.
        settings: Settings of the task.
    """

    task: str
    epochs: dict[float, int]
    batch_size: int
    draws: dict[float, int] = field(default_factory=dict)
    listing: str = ""
    images: str = ""
    per_class: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


PROTOCOLS = {
    "clothing10": Protocol(
        "classify", {0.01: 100, 0.1: 60, 1.0: 20}, batch_size=64, draws={0.01: 5}
    ),
    "cifar10": Protocol(
        "classify",
        {0.01: 40, 0.1: 15, 1.0: 5},
        batch_size=64,
        draws={0.01: 5},
        per_class=1000,
    ),
    "cifar10-vit-s": Protocol(
        "classify",
        {0.01: 80, 0.1: 20, 1.0: 5},
        batch_size=128,
        draws={0.01: 3},
        per_class=2500,
    ),
    "imagenette": Protocol(
        "classify", {0.01: 100, 0.1: 60, 1.0: 20}, batch_size=64, draws={0.01: 5}, per_class=100
    ),
    "imagenette-300": Protocol("classify", {}, batch_size=64, per_class=30),
    "static": Protocol("classify", {0.1: 60, 1.0: 20}, batch_size=64, draws={0.1: 3}),
    "nuclei": Protocol(
        "segment",
        {0.1: 60, 1.0: 15},
        batch_size=16,
        listing="train.txt",
        images="images",
        settings={"binary": True, "vertical_flip": True},
    ),
    "bccd": Protocol(
        "detect",
        {0.2: 50, 1.0: 20},
        batch_size=16,
        listing="ImageSets/Main/train.txt",
        images="JPEGImages",
        settings={"vertical_flip": True},
    ),
}

# The same data with a pretrained ViT-S/14 and a whole ResNet-18.
PROTOCOLS |= {f"{base}-vit-s": PROTOCOLS[base] for base in ("clothing10", "nuclei", "bccd")}
# The same data with another student.
PROTOCOLS["imagenette-mobilenet"] = PROTOCOLS["imagenette"]
# EfficientNet-Lite0 takes so long on a CPU that it is fine-tuned for fewer epochs.
PROTOCOLS |= {
    base: Protocol("classify", {0.1: 60, 1.0: 10}, batch_size=64)
    for base in ("clothing10-lite0", "clothing10-lite0-imagenet")
}


def training_photos(base: str, data: Path, out: Path) -> Path:
    """The folder to distill from: `data` itself, or links to the images that are used."""
    protocol, folder = PROTOCOLS[base], out / "photos" / base
    if protocol.per_class:
        for split, photos in _subset(data, protocol.per_class).items():
            for photo in photos:
                _link(photo, folder / split / photo.parent.name)
        return folder
    if not protocol.listing:
        return data
    for name in (data / protocol.listing).read_text().split():
        _link(data / protocol.images / f"{name}.jpg", folder / "train")
    return folder / "train"


def fresh(folder: Path) -> Path:
    """An unused folder name: results of a stopped study stay for inspection."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _subset(data: Path, per_class: int) -> dict[str, list[Path]]:
    by_class = [sorted(folder.iterdir()) for folder in sorted((data / "train").iterdir())]
    return {
        "train": [photo for photos in by_class for photo in photos[:per_class]],
        "val": [photo for photos in by_class for photo in photos[-300:]],
        "test": sorted((data / "val").glob("*/*")),
    }


def _link(photo: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / photo.name
    if not link.is_symlink():
        link.symlink_to(photo.resolve())
