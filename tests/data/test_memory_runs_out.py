"""Memory that runs out while an image is read is not caused by the image: nothing is skipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from hgkd_edge.data.depth import settled_bits
from hgkd_edge.data.sources import open_splits
from hgkd_edge.survey import survey
from hgkd_edge.tasks.answers import load_photo
from tests.data.annotated import BCCD, NUCLEI, boxes, masks
from tests.data.helpers import data_config


def streamed(photos: Path) -> object:
    return open_splits(data_config(photos, decode="streaming"))["train"].batch(torch.arange(2))


READERS: dict[str, Callable[[Path], object]] = {
    "kept": lambda photos: open_splits(data_config(photos, decode="once")),
    "streamed": streamed,
    "of unknown depth": lambda _: settled_bits(lambda _: b"", ["a.png"], "auto", threads=1),
    "with boxes": lambda _: boxes(BCCD),
    "with label maps": lambda _: masks(NUCLEI, binary=True),
    "counted": lambda _: survey(data_config(BCCD)),
    "predicted": lambda photos: load_photo(next(photos.rglob("*.webp"))),
}


def no_memory(*_: object, **__: object) -> Image.Image:
    raise MemoryError


@pytest.mark.parametrize("name", READERS)
def test_no_image_is_skipped_where_memory_runs_out(
    name: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "open", no_memory)

    with pytest.raises(MemoryError):
        READERS[name](photos)
