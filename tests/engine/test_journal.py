from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path

import pytest
import torch

from hgkd_edge.data.decode import StreamedPixels
from hgkd_edge.data.sources import open_splits
from hgkd_edge.engine.interface import Workplace
from hgkd_edge.engine.journal import open_journal
from hgkd_edge.engine.setup import check_machine, make_accelerator
from hgkd_edge.errors import RecipeError
from hgkd_edge.recipe_sections import TrainConfig
from tests.data.helpers import data_config
from tests.engine.helpers import Classify, config, run, tiny_source


class SlowPixels:
    """Pixels from a slow disk."""

    def __init__(self, images: torch.Tensor, seconds: float) -> None:
        self.images, self.seconds = images, seconds

    def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return self.images[indices]


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def output_of(tmp_path: Path, capsys: pytest.CaptureFixture[str], *, waited: float) -> str:
    """A journal's output for 60 batches of a second each, `waited` seconds of it for images."""
    place = Workplace(tmp_path / "log.jsonl", tmp_path / "last.pt")
    accelerator = make_accelerator(config(), place)
    with open_journal(
        place, accelerator, tiny_source(), label="training", total=60, done=0
    ) as journal:
        assert journal is not None
        for step in range(1, 61):
            journal.record(
                step=step,
                epoch=0,
                scalars={"loss": 1.0},
                lr=0.1,
                photos=8,
                seconds=1.0,
                waited=waited,
            )
    return capsys.readouterr().err


def test_a_starving_student_is_reported_once_with_the_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = output_of(tmp_path, capsys, waited=0.3)

    assert printed.count("the student waits for images 30% of the time") == 1
    assert "set TMPDIR to a faster disk" in printed
    assert "waiting for images 30%" in printed.splitlines()[-1]
    assert records(tmp_path)[0]["data_share"] == 0.3


def test_a_well_fed_student_gets_no_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "waiting" not in output_of(tmp_path, capsys, waited=0.05)


def test_waiting_for_images_is_what_the_log_calls_so(tmp_path: Path) -> None:
    source = tiny_source()
    source.images = SlowPixels(source.images, 1.0)  # type: ignore[assignment]

    run(Classify(), source, tmp_path, epochs=1)

    assert max(record["data_share"] for record in records(tmp_path)) > 0.3


def test_trackers_get_the_projects_name_and_events_lie_in_the_runs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Workplace(tmp_path / "log.jsonl", tmp_path / "last.pt", tracker_dir=tmp_path)
    accelerator = make_accelerator(config(), place)
    named: list[str] = []
    init_trackers = accelerator.init_trackers
    monkeypatch.setattr(
        accelerator, "init_trackers", lambda name: (named.append(name), init_trackers(name))
    )

    with open_journal(place, accelerator, tiny_source(), label="training", total=1, done=0):
        pass

    assert named == ["hgkd-edge"]  # what wandb and mlflow call it
    assert list(tmp_path.glob("tensorboard/events.out.tfevents*"))


def test_a_tracker_that_is_not_installed_is_refused_with_what_to_install() -> None:
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")

    with pytest.raises(RecipeError, match="wandb is not installed.*pip install wandb"):
        check_machine(config(trackers=["tensorboard", "wandb"]))


def test_a_streamed_source_gets_advice_about_its_threads(photos: Path) -> None:
    from hgkd_edge.engine.journal import _fix_starving

    source = open_splits(data_config(photos, decode="streaming", workers=3))["train"]

    assert isinstance(source.images, StreamedPixels)
    assert "data.workers (now 3)" in _fix_starving(source)


@pytest.mark.parametrize("decode", ["once", "streaming"])
def test_streamed_images_give_the_loss_curve_of_kept_ones(
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


def test_a_run_without_trackers_shows_no_message_of_another_library(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    place = Workplace(tmp_path / "log", tmp_path / "last.pt", tracker_dir=tmp_path)

    make_accelerator(TrainConfig(trackers=()), place)

    assert not recwarn.list
