from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from hgkd_edge.data.decode import StreamedPixels
from hgkd_edge.data.sources import open_splits
from tests.data.helpers import data_config
from tests.engine.helpers import Classify, run, tiny_source


class SlowPixels:
    """Pixels of a disk that takes its time."""

    def __init__(self, images: torch.Tensor, seconds: float) -> None:
        self.images, self.seconds = images, seconds

    def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return self.images[indices]


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_starving_student_is_told_of_once_with_the_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny_source()
    source.images = SlowPixels(source.images, 0.1)  # type: ignore[assignment]

    run(Classify(), source, tmp_path, epochs=22)

    said = capsys.readouterr().err
    assert said.count("the student waits for photos") == 1
    assert "set TMPDIR to a faster disk" in said
    assert "waiting for photos" in said.splitlines()[-1]
    waiting = torch.tensor([record["data_share"] for record in records(tmp_path)])
    assert waiting.median() > 0.3


def test_a_well_fed_student_is_not_told_of_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Busy(Classify):
        def inputs(self, *arguments: object) -> object:
            time.sleep(0.02)
            return super().inputs(*arguments)  # type: ignore[arg-type]

    source = tiny_source()
    source.images = SlowPixels(source.images, 0.005)  # type: ignore[assignment]

    run(Busy(), source, tmp_path, epochs=12)

    assert "waiting" not in capsys.readouterr().err


def test_a_streamed_source_is_told_of_its_threads(photos: Path) -> None:
    from hgkd_edge.engine.journal import _mend_starving

    source = open_splits(data_config(photos, decode="streaming", workers=3))["train"]

    assert isinstance(source.images, StreamedPixels)
    assert "data.workers (now 3)" in _mend_starving(source)


@pytest.mark.parametrize("decode", ["once", "streaming"])
def test_streamed_photos_give_the_loss_curve_of_kept_ones(
    photos: Path, tmp_path: Path, decode: str
) -> None:
    class Small(Classify):
        def inputs(self, images: torch.Tensor, *rest: object) -> object:
            return super().inputs(images[..., :4, :4], *rest)  # type: ignore[arg-type]

    source = open_splits(data_config(photos, decode=decode))["train"]
    kept = open_splits(data_config(photos))["train"]
    run(Small(), kept, tmp_path / "kept")

    run(Small(), source, tmp_path / decode)

    curves = [[r["loss"] for r in records(tmp_path / name)] for name in ("kept", decode)]
    assert curves[0] == curves[1]
