"""Which files are opened as images, and how damaged EXIF data are handled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hgkd_edge.data.images import open_image
from hgkd_edge.data.orientation import turn_of
from hgkd_edge.data.resize import cover
from hgkd_edge.data.sources import open_splits
from hgkd_edge.provenance import report_photos
from hgkd_edge.recipe_sections import DataConfig
from hgkd_edge.tasks.answers import load_photo
from tests.data.annotated import masks
from tests.data.image_files import damaged_exif

DAMAGE = ["model", "orientation", "offset", "header"]


def half_white() -> Image.Image:
    """White above black."""
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:20] = 255
    return Image.fromarray(pixels)


def saved(mode: str, file: Path) -> Path:
    """A PNG file (TIFF for CMYK) of a mode; `P` with a transparent color."""
    colors = np.zeros((20, 24, 3), np.uint8)
    colors[:, 12:], colors[10:] = (250, 30, 90), (10, 200, 120)
    image = Image.fromarray(colors)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode in ("LA", "RGBA"):
        image = image.convert(mode)
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    else:
        image = image.quantize(4) if mode == "P" else image.convert(mode)
    file = file.with_suffix(".tiff" if mode == "CMYK" else ".png")
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **({"transparency": 1} if mode == "P" else {}))
    return file


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "I;16", "CMYK"])
def test_images_of_one_to_four_channels_are_seen_as_predict_sees_them(
    tmp_path: Path, mode: str
) -> None:
    for place in ("train/a", "train/b", "test/a", "test/b"):
        file = saved(mode, tmp_path / place / "x")

    sources = open_splits(DataConfig(path=tmp_path, image_size=16))

    assert [len(source) for source in sources.values()] == [2, 2]
    assert not sources["train"].skipped
    seen = np.asarray(cover(load_photo(file), (16, 16))).transpose(2, 0, 1)
    (photo, *_) = sources["test"].images.split(1)
    assert (photo[0].numpy() == seen).all()
    gray = mode in ("1", "L", "LA", "I;16")
    assert (seen[0] == seen[1]).all() == gray, "colors stay colors"
    assert int(seen.max()) - int(seen.min()) > 40


@pytest.mark.parametrize("where", DAMAGE)
def test_damaged_exif_data_cost_no_image(
    tmp_path: Path, where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jpg").write_bytes(damaged_exif(half_white(), 3, where=where))
    turned = where == "model"  # only then the orientation can be read

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
def test_damaged_exif_data_cost_no_annotated_image(tmp_path: Path, where: str) -> None:
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
