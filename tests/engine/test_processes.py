"""Several processes on this machine's CPU, some started by torchrun as a user does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hgkd_edge import processes
from hgkd_edge.cli import app
from hgkd_edge.errors import RecipeError
from tests.engine.helpers import losses
from tests.started import ENVIRONMENT, Ended, start_twice, started_twice

pytestmark = pytest.mark.slow
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def one_process(recipe: Path, run: Path, *settings: str) -> None:
    """In this process, in which torch is loaded; on the CPU, as the two."""
    options = [part for setting in settings for part in ("--set", setting)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        done = CliRunner().invoke(app, ["distill", str(recipe), "--run", str(run), *options])
    assert done.exit_code == 0, done.output


def command(recipe: Path, run: Path, *settings: str) -> list[str]:
    arguments = ["distill", str(recipe), "--run", str(run), "--json"]
    return [*arguments, *(part for setting in settings for part in ("--set", setting))]


def two_processes(recipe: Path, run: Path, *settings: str) -> tuple[Ended, Ended]:
    first, second = started_twice(*command(recipe, run, *settings))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    return first, second


def assert_close(one: Path, other: Path) -> None:
    ours, theirs = torch.tensor(losses(one)), torch.tensor(losses(other))
    torch.testing.assert_close(ours[:6], theirs[:6], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)  # rounding errors add up


def test_two_processes_with_synced_batchnorm_give_the_loss_curve_of_one(
    tiny_recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With a loss at all sites rounding alone grows to 1.5e-4 in these twelve updates, and in a
    # student of one block per stage to 5e-4.
    settings = ["train.epochs=4", "train.sync_batchnorm=true", "loss.where=masked"]
    settings.append("student.args={channels: [8, 16, 24, 32]}")
    monkeypatch.setenv("HGKD_EDGE_CACHE", str(tmp_path / "cache one"))
    one_process(tiny_recipe_file, tmp_path / "one", *settings)
    monkeypatch.setenv("HGKD_EDGE_CACHE", str(tmp_path / "cache two"))  # pre-train there as well

    first, second = two_processes(tiny_recipe_file, tmp_path / "two", *settings)

    assert_close(tmp_path / "two", tmp_path / "one")
    (pretrained,) = (tmp_path / "cache two").glob("teachers/*/mae.jsonl")
    alone = tmp_path / "cache one" / pretrained.relative_to(tmp_path / "cache two")
    curves = [
        [json.loads(line)["loss"] for line in file.read_text().splitlines()]
        for file in (pretrained, alone)
    ]
    torch.testing.assert_close(*map(torch.tensor, curves), rtol=1e-4, atol=1e-5)
    # Only the main process writes and prints.
    assert json.loads(first.stdout)["held_out"]["photos"] == 18
    assert first.stderr.count("images: 48 train") == 1
    assert second.stdout == ""
    assert "images:" not in second.stderr
    one, other = ({p.name for p in (tmp_path / run).iterdir()} for run in ("one", "two"))
    assert one == other


def test_without_it_two_processes_are_one_that_accumulates_two_parts(
    tiny_recipe_file: Path, tmp_path: Path
) -> None:
    one_process(tiny_recipe_file, tmp_path / "one", "train.accumulate=2")

    two_processes(tiny_recipe_file, tmp_path / "two")

    assert_close(tmp_path / "two", tmp_path / "one")


def test_an_error_is_reported_once_and_ends_all(tiny_recipe_file: Path, tmp_path: Path) -> None:
    arguments = command(tiny_recipe_file, tmp_path / "run", "student.name=resnte18")

    first, second = started_twice(*arguments)

    assert first.returncode == second.returncode == 2
    assert (first.stderr + second.stderr).count("error:") == 1
    assert "did you mean 'resnet18" in first.stderr
    assert not (tmp_path / "run").exists()


def test_more_processes_than_gpus_are_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    with pytest.raises(RecipeError, match="2 processes on this machine, which has 1 GPU") as caught:
        processes.from_all(0)

    assert "CUDA_VISIBLE_DEVICES= " in caught.value.hint


ENDLESS = ["train.epochs=400", "train.checkpoint_every=400"]


def test_ctrl_c_in_a_terminal_stops_all(tiny_recipe_file: Path, tmp_path: Path) -> None:
    log = tmp_path / "run" / "log.jsonl"
    process = torchrun(command(tiny_recipe_file, tmp_path / "run", *ENDLESS))
    wait_for_lines(log, 4, process)

    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, printed = process.communicate(timeout=60)

    assert process.returncode != 0
    assert printed.count("stopped at step") == 1
    assert "error: stopped" not in printed
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert state["step"] == log.read_text().count("\n")


def test_where_one_process_is_killed_the_other_ends_and_says_so(
    tiny_recipe_file: Path, tmp_path: Path
) -> None:
    first, second = start_twice(*command(tiny_recipe_file, tmp_path / "run", *ENDLESS))
    try:
        first.wait_for(tmp_path / "run" / "log.jsonl", 4)
    finally:
        second.send_signal(signal.SIGKILL)
    second.end(timeout=60)
    first.send_signal(signal.SIGTERM)  # as torchrun does
    ended = first.end(timeout=60)

    assert ended.returncode != 0
    assert ended.stderr.count("error: another process of this training has ended") == 1
    assert not (tmp_path / "run" / "checkpoints" / "last.pt").exists()


def torchrun(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*TORCHRUN, "-m", "--", "hgkd_edge", *arguments],
        env={**os.environ, **ENVIRONMENT},
        stderr=subprocess.PIPE,
        text=True,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_for_lines(log: Path, lines: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.read_text().count("\n") >= lines):
        assert time.monotonic() < deadline, "never came to the step"
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
