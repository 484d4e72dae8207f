"""How every arm of one data set is fine-tuned and scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["PROTOCOLS", "Protocol", "training_photos"]


@dataclass(frozen=True)
class Protocol:
    """Fine-tuning of one data set.

    Args:
        task: As in `hgkd-edge finetune --task`.
        epochs: By share of the training labels: fewer photos are seen more often.
        batch_size: Photos of an update.
        listing: Text file of the training photos' names, where the data are not class folders.
        images: Folder of the photos, likewise.
        settings: Of the task.
    """

    task: str
    epochs: dict[float, int]
    batch_size: int
    listing: str = ""
    images: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


PROTOCOLS = {
    "clothing10": Protocol("classify", {0.01: 100, 0.1: 60, 1.0: 20}, batch_size=64),
    "cifar10": Protocol("classify", {0.01: 40, 0.1: 15, 1.0: 3}, batch_size=64),
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


def training_photos(base: str, data: Path, out: Path) -> Path:
    """The folder to distil from: `data` itself, or links to an annotated set's training photos."""
    protocol = PROTOCOLS[base]
    if not protocol.listing:
        return data
    folder = out / "photos" / base / "train"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (data / protocol.listing).read_text().split():
        link = folder / f"{name}.jpg"
        if not link.is_symlink():
            link.symlink_to((data / protocol.images / f"{name}.jpg").resolve())
    return folder
