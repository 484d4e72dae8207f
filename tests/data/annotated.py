"""Images with boxes and label maps: the samples, and small folders made for a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hgkd_edge.data.annotations import open_boxes, open_masks
from hgkd_edge.data.sources import ImageSource
from hgkd_edge.recipe_sections import DataConfig

SAMPLES = Path(__file__).parent.parent / "samples"

BCCD, NUCLEI = SAMPLES / "bccd", SAMPLES / "nuclei"

SQUARE = [10, 10, 30, 10, 30, 40, 10, 40]

Change = Callable[[dict[str, Any]], object]


def boxes(root: Path, size: Any = (240, 320), **more: Any) -> dict[str, ImageSource]:
    return open_boxes(DataConfig(path=root, image_size=size, **more))


def masks(
    root: Path, *, binary: bool = False, codes: Any = "auto", ignore: Any = "auto", **more: Any
) -> dict[str, ImageSource]:
    config = DataConfig(path=root, image_size=(64, 96), **more)
    return open_masks(config, binary=binary, codes=codes, ignore=ignore)


def save_image(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def write_coco(
    root: Path, split: str = "train", *, photos: int = 3, change: Change | None = None
) -> Path:
    """`SPLIT.json` with 100 x 50 images `SPLIT0.png`, ... and on each a cat, box and outline."""
    content: dict[str, Any] = {
        "images": [
            {"id": i, "file_name": f"{split}{i}.png", "width": 100, "height": 50}
            for i in range(photos)
        ],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [
            {"image_id": i, "category_id": 7, "bbox": [10, 10, 20, 30], "segmentation": [SQUARE]}
            for i in range(photos)
        ],
    }
    for i in range(photos):
        save_image(root / "images" / f"{split}{i}.png", np.zeros((50, 100, 3), np.uint8))
    if change is not None:
        change(content)
    file = root / f"{split}.json"
    file.write_text(json.dumps(content, indent=1))
    return file


def skipped_in(splits: dict[str, ImageSource]) -> list[tuple[str, str]]:
    return [fault for source in splits.values() for fault in source.skipped]
