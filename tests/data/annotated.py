"""Images with boxes and label maps: the samples, and small folders made for a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hgkd_edge.data.annotations import open_boxes, open_masks
from hgkd_edge.data.sources import ImageSource
from hgkd_edge.recipe_sections import DataConfig
from tests.data.image_files import save_image

SAMPLES = Path(__file__).parent.parent / "samples"

BCCD, NUCLEI = SAMPLES / "bccd", SAMPLES / "nuclei"

OBJECT = "<object><name>{}</name><bndbox>{}</bndbox></object>"

CORNERS = "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"

SQUARE = [10, 10, 30, 10, 30, 40, 10, 40]

Change = Callable[[dict[str, Any]], object]


def boxes(root: Path, size: Any = (240, 320), **more: Any) -> dict[str, ImageSource]:
    return open_boxes(DataConfig(path=root, image_size=size, **more))


def masks(
    root: Path, *, binary: bool = False, codes: Any = "auto", ignore: Any = "auto", **more: Any
) -> dict[str, ImageSource]:
    config = DataConfig(path=root, image_size=(64, 96), **more)
    return open_masks(config, binary=binary, codes=codes, ignore=ignore)


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


def voc(root: Path, annotations: dict[str, str], *, train: str) -> Path:
    """A small VOC folder of 100 x 50 images; `train` names those in the list."""
    for name, xml in annotations.items():
        save_image(root / "JPEGImages" / f"{name}.png", np.zeros((50, 100, 3), np.uint8))
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{name}.xml").write_text(xml)
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(train.split()))
    return root
