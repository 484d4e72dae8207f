"""A small multi-label data set of real photos: two bundled photos side by side have both labels."""

from __future__ import annotations

import csv
import random
from pathlib import Path

from PIL import Image

__all__ = ["write_labels_table"]

NOTHING = "hat"  # its images have no label


def write_labels_table(photos: Path, folder: Path, *, train: int = 48, test: int = 24) -> Path:
    """Write `labels.csv` with one column of 0 and 1 per class, and its images.

    Args:
        photos: `{train,test}/<class>/*`.
        folder: Where to write.
        train: Number of training images.
        test: Number of test images.
    """
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    classes = sorted(path.name for path in (photos / "train").iterdir())
    named = [name for name in classes if name != NOTHING]
    with (folder / "labels.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["image", "split", *named])
        for split, count in (("train", train), ("test", test)):
            for number in range(count):
                name, pair = f"{split}-{number:03d}.png", [draw.choice(classes) for _ in range(2)]
                sides = [draw.choice(sorted((photos / split / one).iterdir())) for one in pair]
                _joined(*sides).save(folder / name)
                table.writerow([name, split, *(int(one in pair) for one in named)])
    return folder / "labels.csv"


def _joined(left: Path, right: Path) -> Image.Image:
    both = Image.new("RGB", (64, 64))
    for place, file in enumerate((left, right)):
        with Image.open(file) as photo:
            both.paste(photo.convert("RGB").resize((32, 64)), (32 * place, 0))
    return both
