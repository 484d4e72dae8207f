"""Looks at a model while it is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from hgkd_edge.engine import Observation, Workplace, loop, train
from hgkd_edge.engine.journal import Journal, rate_in
from hgkd_edge.engine.setup import make_accelerator
from hgkd_edge.errors import DataError
from tests.engine.helpers import Classify, Masks, config, log_lines, place, tiny_source


def looked_at(folder: Path, watch: Any, *, task: Any = None, **more: Any) -> nn.Module:
    return train(
        task or Classify(),
        tiny_source(),
        config(**more),
        seed=1,
        place=place(folder),
        label="test",
        watch=watch,
    )


def score(model: nn.Module) -> Observation:
    torch.rand(3)  # changes the state of the generator
    model.eval()
    return Observation({"knn": 0.25}, "k-NN 0.250")


def test_scores_are_in_the_log_at_their_steps(tmp_path: Path) -> None:
    looked_at(tmp_path, score, evaluate_every=2)  # 4 epochs of 5 steps

    found = [line for line in log_lines(tmp_path) if "knn" in line]
    assert found == [{"step": 10, "knn": 0.25}]  # the end of a run is scored on all images
    assert rate_in(tmp_path / "log.jsonl") > 0


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_look_changes_nothing_of_the_training(tmp_path: Path, ema: float) -> None:
    plain = looked_at(tmp_path / "plain", None, task=Masks(), epochs=2, ema=ema)
    seen = looked_at(tmp_path / "seen", score, task=Masks(), epochs=2, ema=ema, evaluate_every=1)

    lines = [line for line in log_lines(tmp_path / "seen") if "loss" in line]
    assert lines == log_lines(tmp_path / "plain")
    for a, b in zip(plain.state_dict().values(), seen.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_zero_never_looks_and_auto_waits_for_many_images(tmp_path: Path) -> None:
    def fail(model: nn.Module) -> Observation:
        raise AssertionError("looked")

    looked_at(tmp_path / "never", fail, evaluate_every=0)
    looked_at(tmp_path / "auto", fail)


def test_images_that_cannot_be_read_end_the_looks_and_not_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def fail(model: nn.Module) -> Observation:
        calls.append(model)
        raise DataError("held-out images are gone")

    looked_at(tmp_path, fail, evaluate_every=1)

    assert len(calls) == 1
    assert "no held-out scores from now on: held-out images are gone" in capsys.readouterr().err
    assert log_lines(tmp_path)[-1]["step"] == 20


def test_where_the_main_process_stops_looking_the_others_do_not_wait_for_its_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another process, which gets the main one's result and never looks by itself."""
    asked = []

    def from_main(work: Callable[[], Any]) -> Any:
        if work.__name__ != "_look":
            return work()
        asked.append(work)
        return False

    monkeypatch.setattr(loop, "on_main", from_main)
    looked_at(tmp_path, lambda model: pytest.fail("not the main process"), evaluate_every=1)

    assert len(asked) == 1


def test_pictures_go_to_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def draw(model: nn.Module) -> Observation:
        return Observation({"knn": 0.5}, pictures={"panels": torch.rand(1, 3, 8, 8)})

    workplace = Workplace(
        tmp_path / "log.jsonl", tmp_path / "last.pt", tracker_dir=tmp_path, resume_command="again"
    )
    options = config(evaluate_every=2)
    train(Classify(), tiny_source(), options, seed=1, place=workplace, label="test", watch=draw)

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["panels"]
    assert [event.value for event in events.Scalars("knn")][:1] == [0.5]


def test_the_rate_on_the_progress_line_includes_what_is_between_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, shown = [0.0], []
    monkeypatch.setattr(
        "hgkd_edge.engine.journal.time", SimpleNamespace(perf_counter=lambda: clock[0])
    )
    with (tmp_path / "log.jsonl").open("w") as stream:
        accelerator = make_accelerator(config(), place(tmp_path))
        journal = Journal(
            accelerator,
            stream,
            tmp_path / "log.jsonl",
            lambda step, line: shown.append(line),
            tiny_source(),
        )
        for step in (1, 2):
            clock[0] += 1.0
            batch = {"scalars": {"loss": 1.0}, "lr": 0.1, "photos": 80, "seconds": 1.0}
            journal.record(step=step, epoch=0, waited=0.0, **batch)
            journal.observe(step, Observation({"knn": 0.25}, "k-NN 0.250"))
            clock[0] += 9.0

    assert shown == ["loss 1.0000  80 img/s", "loss 1.0000  15 img/s  k-NN 0.250"]  # 160 in 11 s
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").open()]
    assert [record.get("images_per_s") for record in records] == [80.0, None, 80.0, None]
