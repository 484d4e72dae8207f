"""Memory that runs out while an image is read ends the command: the image is not skipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from hgkd_edge.data.depth import settled_bits
from hgkd_edge.data.sources import open_splits
from hgkd_edge.errors import OutOfMemory, is_out_of_memory
from hgkd_edge.survey import survey
from hgkd_edge.tasks.answers import load_photo
from tests.data.annotated import BCCD, NUCLEI, boxes, masks
from tests.data.helpers import data_config
from tests.data.test_codes import folder, regions


def streamed(photos: Path) -> object:
    return open_splits(data_config(photos, decode="streaming"))["train"].batch(torch.arange(2))


READERS: dict[str, Callable[[Path], object]] = {
    "kept": lambda photos: open_splits(data_config(photos, decode="once")),
    "streamed": streamed,
    "of unknown depth": lambda _: settled_bits(lambda _: b"", ["a.png"], "auto", threads=1),
    "with boxes": lambda _: boxes(BCCD),
    "with label maps": lambda _: masks(NUCLEI, binary=True),
    "counted": lambda _: survey(data_config(BCCD)),
    "predicted": lambda photos: load_photo(next(photos.rglob("*.png"))),
}


def no_memory(*_: object, **__: object) -> Image.Image:
    raise MemoryError


@pytest.mark.parametrize("name", READERS)
def test_no_image_is_skipped_where_memory_runs_out(
    name: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in sorted(photos.glob("*/*/*.webp")):  # tests share decoded WebP files
        to = (tmp_path / file.relative_to(photos)).with_suffix(".png")
        to.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).save(to)
    monkeypatch.setattr(Image, "open", no_memory)

    with pytest.raises(OutOfMemory, match=r"\w\.\w+: out of memory while it is read") as error:
        READERS[name](tmp_path)

    assert error.value.exit_code == 1


def test_codes_are_not_settled_without_the_label_maps_that_memory_has_no_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path, regions(1, 4))
    monkeypatch.setattr("hgkd_edge.data.annotations.opening.read_mask", no_memory)

    with pytest.raises(OutOfMemory, match=r"out of memory while it is read"):
        masks(tmp_path, holdout=0)


def test_streamed_label_maps_name_missing_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    source = masks(NUCLEI, binary=True, decode="streaming")["train"]
    monkeypatch.setattr("hgkd_edge.data.annotations.opening.read_mask", no_memory)

    with pytest.raises(OutOfMemory):
        source.batch(torch.arange(1))


def test_the_name_of_a_missing_file_does_not_stand_for_missing_memory() -> None:
    assert not is_out_of_memory(FileNotFoundError(2, "No such file or directory", "bad_alloc.png"))
    assert is_out_of_memory(OSError(12, "Cannot allocate memory", "a.png"))
