from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.data.helpers import write_shards
from tests.engine.helpers import losses

pytestmark = pytest.mark.slow
# Without a GPU: its sums have no fixed order, so no two runs would be equal.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(autouse=True)
def teacher_of_one_thread(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Teachers of other tests are trained on two threads, which round differently."""
    monkeypatch.setenv("HGKD_EDGE_CACHE", str(tmp_path_factory.getbasetemp() / "one-thread"))


def distill_command(recipe: Path, folder: Path, *more: str) -> list[str]:
    script = [sys.executable, "-m", "hgkd_edge", "distill", str(recipe), "--run", str(folder)]
    return [*script, "--set", "train.epochs=8", "--set", "train.checkpoint_every=1", *more]


@pytest.fixture
def whole(tiny_recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped, images kept in memory; made once for all tests."""
    folder = tmp_path_factory.getbasetemp() / "whole"
    if not folder.is_dir():
        subprocess.run(
            distill_command(tiny_recipe_file, folder),
            check=True,
            env={**os.environ, **ENVIRONMENT},
            capture_output=True,
        )
    return folder


def start_and_stop(command: list[str], log: Path, *, step: int, number: int) -> tuple[int, str]:
    """Run until the log has so many lines, send a signal; exit status and output."""
    process = subprocess.Popen(
        command, env={**os.environ, **ENVIRONMENT}, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.read_text().count("\n") >= step):
        assert time.monotonic() < deadline, "never came to the step"
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    return process.returncode, printed


def resume(command: list[str]) -> None:
    done = subprocess.run(
        [*command, "--resume"], env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def assert_same_run(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    first, second = (load_file(folder / "backbone.safetensors") for folder in (one, other))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_killed_at_any_step_a_run_resumes_to_the_same_loss_curve_and_weights(
    tiny_recipe_file: Path, whole: Path, tmp_path: Path
) -> None:
    command = distill_command(tiny_recipe_file, tmp_path / "killed")
    step = random.randint(1, 20)  # any: the promise does not depend on it

    start_and_stop(command, tmp_path / "killed/log.jsonl", step=step, number=signal.SIGKILL)
    assert not (tmp_path / "killed/backbone.safetensors").exists()
    resume(command)

    assert_same_run(tmp_path / "killed", whole)


def test_with_stages_disjoint_masks_and_an_embedding_a_killed_run_resumes_exactly(
    tiny_recipe_file: Path, tmp_path: Path
) -> None:
    keys = [
        "mask={ratio: {0: 0.75, 0.4: 0.5, 0.8: 0}, per_image: 2, disjoint: true}",
        "loss={embedding_weight: 0.5, cosine_weight: 0.5}",
        "teacher.layers=[0, 1]",
        "teacher.combine=concat",
        "student.head=mlp",
    ]
    settings = [part for key in keys for part in ("--set", key)]
    whole = distill_command(tiny_recipe_file, tmp_path / "whole", *settings)
    subprocess.run(whole, check=True, env={**os.environ, **ENVIRONMENT}, capture_output=True)
    command = distill_command(tiny_recipe_file, tmp_path / "killed", *settings)

    step = random.randint(1, 20)
    start_and_stop(command, tmp_path / "killed/log.jsonl", step=step, number=signal.SIGKILL)
    resume(command)

    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_streamed_from_shards_and_killed_the_run_is_still_the_same(
    photos: Path, tiny_recipe_file: Path, whole: Path, tmp_path: Path
) -> None:
    shards = write_shards(photos, tmp_path / "shards")
    data = ["data.source=webdataset", f"data.path='{shards}'", "data.decode=streaming"]
    settings = [part for setting in data for part in ("--set", setting)]
    command = distill_command(tiny_recipe_file, tmp_path / "killed", *settings)
    step = random.randint(1, 20)

    start_and_stop(command, tmp_path / "killed/log.jsonl", step=step, number=signal.SIGKILL)
    resume(command)

    assert_same_run(tmp_path / "killed", whole)


def test_ctrl_c_saves_progress_says_how_to_resume_and_the_run_resumes_exactly(
    tiny_recipe_file: Path, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stopped"
    command = distill_command(tiny_recipe_file, folder)

    status, printed = start_and_stop(command, folder / "log.jsonl", step=11, number=signal.SIGINT)

    assert status == 130
    assert "progress saved" in printed
    assert f"--run {folder} --resume" in printed.replace("\n", " ")
    resume(command)
    assert_same_run(folder, whole)


def test_a_teacher_killed_in_ibot_resumes_to_the_same_weights(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lightly")
    tiny_recipe["data"]["image_size"] = 32
    tiny_recipe["teacher"]["pretrain"] = {
        "objective": "ibot",
        "epochs": 24,  # a checkpoint every ten
        "batch_size": 16,
        "ibot": {"prototypes": 64, "local_crops": 1},
    }
    recipe = tmp_path / "ibot.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe))
    command = [sys.executable, "-m", "hgkd_edge", "pretrain", str(recipe)]

    def run_in(cache: Path) -> None:
        environment = {**os.environ, **ENVIRONMENT, "HGKD_EDGE_CACHE": str(cache)}
        subprocess.run(command, check=True, env=environment, capture_output=True)

    run_in(tmp_path / "whole")
    (whole,) = (tmp_path / "whole/teachers").iterdir()
    killed = tmp_path / "killed/teachers" / whole.name
    monkeypatch.setenv("HGKD_EDGE_CACHE", str(tmp_path / "killed"))
    step = random.randint(31, 60)  # after the first checkpoint

    start_and_stop(command, killed / "ibot.jsonl", step=step, number=signal.SIGKILL)
    assert not (killed / "model.safetensors").exists()
    run_in(tmp_path / "killed")

    one, other = (
        [json.loads(line)["loss"] for line in (folder / "ibot.jsonl").read_text().splitlines()]
        for folder in (whole, killed)
    )
    assert one == other
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, killed))
    assert all(torch.equal(first[name], second[name]) for name in first)
