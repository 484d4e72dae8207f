from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hgkd_edge.data.sources import ImageSource
from hgkd_edge.engine import Draws, Workplace, resolve_precision, train
from hgkd_edge.errors import RecipeError, TrainingError
from hgkd_edge.recipe import TrainConfig


class Classify:
    """A task without BatchNorm or dropout: its gradient is the mean of its parts' gradients."""

    updates_per_batch = 1
    layer_decay: float | None = None

    def __init__(self, *, spoil_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = Net(spoil_at)

    def inputs(self, images: Tensor, labels: Tensor, draws: Draws) -> Iterator[tuple[Tensor, ...]]:
        noise = draws.uniform(len(images), 1)[..., None, None]
        yield images.float() / 255 + 0.1 * noise, labels


class Net(nn.Module):
    def __init__(self, spoil_at: int | None) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.GELU(), nn.Linear(16, 3))
        self.spoil_at, self.calls = spoil_at, 0

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        loss = nn.functional.cross_entropy(self.layers(images), labels)
        return {"loss": loss * (math.nan if self.calls == self.spoil_at else 1.0)}


@pytest.fixture
def source() -> ImageSource:
    generator = torch.Generator().manual_seed(0)
    return ImageSource(
        images=torch.randint(0, 256, (40, 3, 4, 4), dtype=torch.uint8, generator=generator),
        labels=torch.arange(40) % 3,
        names=[str(i) for i in range(40)],
        classes=["a", "b", "c"],
        fingerprint="",
    )


def config(**more: Any) -> TrainConfig:
    base = {"epochs": 4, "batch_size": 8, "warmup_epochs": 1, "precision": "fp32", "lr": 1e-2}
    return TrainConfig.model_validate({**base, **more})


def place(folder: Path) -> Workplace:
    return Workplace(
        folder / "log.jsonl", folder / "checkpoints" / "last.pt", resume_command="again"
    )


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def run(task: Any, source: ImageSource, folder: Path, *, resume: bool = False, **more: Any) -> Any:
    return train(
        task, source, config(**more), seed=1, place=place(folder), label="test", resume=resume
    )


def test_training_learns_and_logs_every_step(source: ImageSource, tmp_path: Path) -> None:
    run(Classify(), source, tmp_path, epochs=60)

    curve = losses(tmp_path)
    assert len(curve) == 60 * 5
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])


def test_the_rate_warms_up_then_falls_to_zero(source: ImageSource, tmp_path: Path) -> None:
    run(Classify(), source, tmp_path, epochs=10, warmup_epochs=2)

    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rates = [record["lr"] for record in records]
    peak = rates.index(max(rates))
    assert 9 <= peak <= 11
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.01 * max(rates)


def test_the_returned_model_is_the_average_and_follows_the_trained_one(
    source: ImageSource, tmp_path: Path
) -> None:
    task = Classify()

    averaged = run(task, source, tmp_path, ema=0.9)

    trained = task.model.state_dict()
    assert any(not torch.equal(v, trained[k]) for k, v in averaged.state_dict().items())
    assert run(Classify(), source, tmp_path / "plain", ema=0.0) is not averaged


def test_accumulated_gradients_equal_the_large_batch(source: ImageSource, tmp_path: Path) -> None:
    run(Classify(), source, tmp_path / "whole")
    run(Classify(), source, tmp_path / "parts", accumulate=4)

    torch.testing.assert_close(
        torch.tensor(losses(tmp_path / "parts")), torch.tensor(losses(tmp_path / "whole"))
    )


def test_a_batch_that_does_not_divide_is_refused(source: ImageSource, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not divide.*use 6"):
        run(Classify(), source, tmp_path, accumulate=3)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    source: ImageSource, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"nan at step 12 \(learning rate .*lower the rate"):
        run(Classify(spoil_at=13), source, tmp_path, checkpoint_every=1)

    state = torch.load(place(tmp_path).checkpoint_file, weights_only=True)
    assert state["step"] == 10
    assert all(value.isfinite().all() for value in state["model"].values())


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    source: ImageSource, tmp_path: Path
) -> None:
    run(Classify(), source, tmp_path / "whole")
    with pytest.raises(TrainingError):
        run(Classify(spoil_at=13), source, tmp_path / "broken", checkpoint_every=1)

    run(Classify(), source, tmp_path / "broken", resume=True)

    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")


def test_a_full_disk_is_one_clear_error_and_corrupts_nothing(
    source: ImageSource, tmp_path: Path
) -> None:
    run(Classify(), source, tmp_path, epochs=1)
    file = place(tmp_path).checkpoint_file
    before = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails with EFBIG
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        with pytest.raises(TrainingError, match="cannot be written.*free disk space"):
            run(Classify(), source, tmp_path, epochs=2, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)

    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == ["last.pt"]


def test_fp16_without_a_gpu_is_refused_with_the_way_out() -> None:
    if torch.cuda.is_available():
        assert resolve_precision("fp16") == "fp16"
    else:
        with pytest.raises(RecipeError, match="use bf16, fp32 or auto"):
            resolve_precision("fp16")
    assert resolve_precision("auto") in ("bf16", "fp32")


def distill_command(recipe: Path, folder: Path, *more: str) -> list[str]:
    script = [sys.executable, "-m", "hgkd_edge.cli", "distill", str(recipe), "--run", str(folder)]
    return [*script, "--set", "train.epochs=8", "--set", "train.checkpoint_every=1", *more]


def wait_for_step(log: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.is_file() and log.read_text().count("\n") >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"never came to step {step}: {process.communicate()}")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_killed_process_resumes_to_the_same_loss_curve_and_weights(
    tiny_recipe_file: Path, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(
        distill_command(tiny_recipe_file, whole), check=True, env=environment, capture_output=True
    )
    process = subprocess.Popen(
        distill_command(tiny_recipe_file, killed),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_step(killed / "log.jsonl", 11, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)

    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "progress saved" in said
        assert f"--run {killed} --resume" in said.replace("\n", " ")
    assert not (killed / "backbone.safetensors").exists()
    done = subprocess.run(
        distill_command(tiny_recipe_file, killed, "--resume"),
        env=environment,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert losses(killed) == losses(whole)
    first, second = (load_file(folder / "backbone.safetensors") for folder in (whole, killed))
    assert all(torch.equal(first[name], second[name]) for name in first)
