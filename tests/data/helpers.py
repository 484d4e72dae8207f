"""The images of a folder, written in other dataset formats by those formats' own libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image

from hgkd_edge.recipe_sections import DataConfig


def data_config(path: Path | str, **more: Any) -> DataConfig:
    """The `data` section for small images at a path."""
    return DataConfig.model_validate({"path": path, "image_size": 32, **more})


def write_shards(photos: Path, to: Path, *, label: str = "cls", per_shard: int = 20) -> str:
    """`{train,test}-NNN.tar` of a folder's images in the folder's order; returns the pattern."""
    to.mkdir(parents=True)
    classes = sorted(folder.name for folder in (photos / "train").iterdir())
    for split in ("train", "test"):
        pattern = str(to / f"{split}-%03d.tar")
        with webdataset.ShardWriter(pattern, maxcount=per_shard, verbose=0) as shards:
            for i, file in enumerate(sorted((photos / split).glob("*/*.webp"))):
                number = classes.index(file.parent.name)
                values = {"cls": number, "json": {"label": number}, "txt": file.parent.name}
                shards.write(
                    {"__key__": f"{i:06d}", "webp": file.read_bytes(), label: values[label]}
                )
    counts = {s: len(list(to.glob(f"{s}-*.tar"))) - 1 for s in ("train", "test")}
    return f"{to}/{{train-{{000..{counts['train']:03d}}},test-{{000..{counts['test']:03d}}}}}.tar"


def spoil(file: Path) -> None:
    """Cut an image file off in the middle."""
    file.write_bytes(file.read_bytes()[:200])


def noise_photo(file: Path, *, side: int, seed: int) -> None:
    """An image of noise, slow to decode for its size."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(file)
