from __future__ import annotations

import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from hgkd_edge.cli import app
from tests.conftest import NARROW
from tests.data.helpers import write_shards
from tests.engine.helpers import losses
from tests.started import Started

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_thread_as_in_the_killed_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Two threads round differently: so do teachers that other tests trained.

    Without a GPU: its sums have no fixed order, so no two runs would be equal.
    """
    monkeypatch.setenv("HGKD_EDGE_CACHE", str(tmp_path_factory.getbasetemp() / "one-thread"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(usual)


def distill_command(recipe: Path, folder: Path, *more: str) -> list[str]:
    command = ["distill", str(recipe), "--run", str(folder)]
    return [*command, "--set", "train.epochs=5", "--set", "train.checkpoint_every=1", *more]


@pytest.fixture
def whole(tiny_recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped, images kept in memory; made once for all tests."""
    folder = tmp_path_factory.getbasetemp() / "whole"
    if not folder.is_dir():
        finish(distill_command(tiny_recipe_file, folder))
    return folder


def start_and_stop(command: list[str], log: Path, *, step: int, number: int) -> tuple[int, str]:
    """Run until the log has so many lines, send a signal; exit status and output."""
    process = Started(*command)
    process.wait_for(log, step)
    process.send_signal(number)
    ended = process.end(timeout=60)
    return ended.returncode, ended.stderr


def finish(command: list[str]) -> None:
    """Run the command in this process, in which torch is loaded."""
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output


def any_step(first: int, last: int) -> int:
    """The promise does not depend on the step."""
    step = random.randint(first, last)
    print(f"step {step}")  # pytest shows it where the test fails
    return step


def assert_same_run(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    first, second = (load_file(folder / "backbone.safetensors") for folder in (one, other))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_killed_at_any_step_a_run_resumes_to_the_same_loss_curve_and_weights(
    tiny_recipe_file: Path, whole: Path, tmp_path: Path
) -> None:
    command = distill_command(tiny_recipe_file, tmp_path / "killed")
    step = any_step(1, 11)

    start_and_stop(command, tmp_path / "killed/log.jsonl", step=step, number=signal.SIGKILL)
    assert not (tmp_path / "killed/backbone.safetensors").exists()
    finish([*command, "--resume"])

    assert_same_run(tmp_path / "killed", whole)


def test_with_stages_two_blocks_an_embedding_and_given_weights_a_killed_run_resumes_exactly(
    tiny_recipe_file: Path, tmp_path: Path
) -> None:
    trained = timm.create_model("resnet18", num_classes=3, **NARROW)
    save_file(trained.state_dict(), tmp_path / "trained.safetensors")
    keys = [
        "student.weights=path",
        f"student.path={tmp_path / 'trained.safetensors'}",
        "mask={ratio: {0: 0.75, 0.4: 0.5, 0.8: 0}, per_image: 2, disjoint: true}",
        "loss={embedding_weight: 0.5, weigh_sites: true}",
        "teacher.layers=[0, 1]",
        "student.head=mlp",
    ]
    settings = [part for key in keys for part in ("--set", key)]
    finish(distill_command(tiny_recipe_file, tmp_path / "whole", *settings))
    command = distill_command(tiny_recipe_file, tmp_path / "killed", *settings)

    step = any_step(1, 11)
    start_and_stop(command, tmp_path / "killed/log.jsonl", step=step, number=signal.SIGKILL)
    finish([*command, "--resume"])

    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_streamed_from_shards_and_killed_the_run_is_still_the_same(
    photos: Path, tiny_recipe_file: Path, whole: Path, tmp_path: Path
) -> None:
    shards = write_shards(photos, tmp_path / "shards")
    data = ["data.source=webdataset", f"data.path='{shards}'", "data.decode=streaming"]
    settings = [part for setting in data for part in ("--set", setting)]
    command = distill_command(tiny_recipe_file, tmp_path / "killed", *settings)
    step = any_step(1, 11)

    start_and_stop(command, tmp_path / "killed/log.jsonl", step=step, number=signal.SIGKILL)
    finish([*command, "--resume"])

    assert_same_run(tmp_path / "killed", whole)


def test_ctrl_c_saves_progress_says_how_to_resume_and_the_run_resumes_exactly(
    tiny_recipe_file: Path, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stopped"
    command = distill_command(tiny_recipe_file, folder)

    status, printed = start_and_stop(command, folder / "log.jsonl", step=8, number=signal.SIGINT)

    assert status == 130
    assert "progress saved" in printed
    assert f"--run {folder} --resume" in printed.replace("\n", " ")
    finish([*command, "--resume"])
    assert_same_run(folder, whole)


def test_a_teacher_killed_in_ibot_resumes_to_the_same_weights(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lightly")
    tiny_recipe["data"]["image_size"] = 32
    tiny_recipe["teacher"]["pretrain"] = {
        "objective": "ibot",
        "epochs": 16,  # a checkpoint every ten
        "batch_size": 16,
        "ibot": {"prototypes": 64, "local_crops": 1},
    }
    recipe = tmp_path / "ibot.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe))
    command = ["pretrain", str(recipe)]

    monkeypatch.setenv("HGKD_EDGE_CACHE", str(tmp_path / "whole"))
    finish(command)
    (whole,) = (tmp_path / "whole/teachers").iterdir()
    killed = tmp_path / "killed/teachers" / whole.name
    monkeypatch.setenv("HGKD_EDGE_CACHE", str(tmp_path / "killed"))
    step = any_step(31, 42)  # after the first checkpoint

    start_and_stop(command, killed / "ibot.jsonl", step=step, number=signal.SIGKILL)
    assert not (killed / "model.safetensors").exists()
    finish(command)

    one, other = (
        [json.loads(line)["loss"] for line in (folder / "ibot.jsonl").read_text().splitlines()]
        for folder in (whole, killed)
    )
    assert one == other
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, killed))
    assert all(torch.equal(first[name], second[name]) for name in first)
