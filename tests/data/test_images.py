"""Which files are opened as images, and what becomes of damaged EXIF data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hgkd_edge.data.images import open_image, turn_of
from hgkd_edge.data.sources import open_splits
from hgkd_edge.provenance import report_photos
from hgkd_edge.recipe import DataConfig
from hgkd_edge.tasks.answers import load_photo
from tests.data.annotated import masks
from tests.data.image_files import damaged_exif

DAMAGE = ["model", "orientation", "offset", "header"]


def half_white() -> Image.Image:
    """White above black."""
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:20] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("where", DAMAGE)
def test_damaged_exif_data_cost_no_photo(
    tmp_path: Path, where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jpg").write_bytes(damaged_exif(half_white(), 3, where=where))
    turned = where == "model"  # only there the orientation can be read

    for decode in ("once", "streaming"):
        splits = open_splits(
            DataConfig(path=tmp_path, image_size=35, holdout=0, decode=decode)  # type: ignore[arg-type]
        )
        images, _ = splits["train"].batch(torch.tensor([0]))
        assert splits["train"].skipped == []
        assert (images[0, :, 3].float().mean() < 50) == turned
        ((name, fault),) = splits["train"].noted
        assert name == "a.jpg"
        assert "EXIF" in fault

    report_photos(splits)
    assert "a.jpg: " in capfd.readouterr().err
    assert (np.asarray(load_photo(tmp_path / "a.jpg"))[3].mean() < 50) == turned


@pytest.mark.parametrize("where", DAMAGE)
def test_damaged_exif_data_cost_no_annotated_photo(tmp_path: Path, where: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(damaged_exif(half_white(), 3, where=where))
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.eye(40, dtype=np.uint8)).save(tmp_path / "masks" / "a.png")

    source = masks(tmp_path, holdout=0)["train"]

    assert len(source) == 1
    assert len(source.noted) == 1


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_turns_nothing(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    half_white().save(tmp_path / "a.png", exif=exif)

    with open_image(tmp_path / "a.png") as image:
        turn = turn_of(image)

    assert turn.orientation == 1
    assert bool(turn.fault) == (orientation > 8), "0 is what many tools write for none"
