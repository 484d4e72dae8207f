"""Shared by the tests of segmentation and detection: settings and common checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.optim import create_optimizer_v2
from torch import nn

from exporters import runtimes
from exporters.verify import export_and_verify
from hgkd_edge.errors import TrainingError
from hgkd_edge.finetune import TASKS, answers, finetune, load_model
from hgkd_edge.models.backbone import read_backbone
from hgkd_edge.rundir import RunDir
from hgkd_edge.score_records import TaskScores
from hgkd_edge.tasks import config as settings
from hgkd_edge.tasks.base import ModelCard
from hgkd_edge.tasks.config import FinetuneConfig
from hgkd_edge.tasks.dense import WithLoss

SAMPLES = Path(__file__).parent.parent / "samples"
QUICK = [
    "train.precision=fp32",
    "train.batch_size=8",
    "train.lr=4e-3",
    "train.layer_decay=1",
    "train.ema=0.8",  # follows within a few of the few steps
    "train.warmup_epochs=1",
]


def configure(run: RunDir, task: str, data: str, *overrides: str) -> FinetuneConfig:
    """Quick settings of a task on one of the samples."""
    return settings.resolve(run, task, SAMPLES / data, "distilled", [*QUICK, *overrides])


def logged(run: RunDir) -> list[float]:
    """The loss of every step."""
    return [json.loads(line)["loss"] for line in (run.path / "finetune.jsonl").open()]


def check_onnx_scores_the_same(run: RunDir, config: FinetuneConfig, reported: TaskScores) -> None:
    """Export the run's model; its ONNX file agrees with PyTorch and earns the reported scores."""
    task = TASKS[config.task]
    network, card = load_model(run.model_file)
    source = task.open_splits(config)["val"]
    images = task.view(source.images, card).numpy()
    path = run.path / "model.onnx"

    _, verification = export_and_verify(network, path, images, output_names=task.output_names)
    scores = task.judge(answers(runtimes.open(path).run, task, card, source), card)

    assert verification.passed
    wanted = pytest.approx(reported.single[task.metric], abs=1e-4)
    assert scores.single[task.metric] == wanted
    again = runtimes.open(network, names=task.output_names).run
    judged = task.judge(answers(again, task, card, source), card)
    assert judged.single[task.metric] == wanted


def check_resume_is_exact(
    run: RunDir, config: FinetuneConfig, loss: type[WithLoss], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training interrupted between two checkpoints resumes to the same losses and weights."""
    finetune(config, run)
    curve, weights = logged(run), load_file(run.model_file)
    (run.path / "checkpoints" / "finetune.pt").unlink()
    run.model_file.unlink()
    calls = iter(range(len(curve)))
    forward = loss.forward

    def broken(self: Any, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = forward(self, *inputs)
        return outputs if next(calls) < len(curve) // 2 else {"loss": outputs["loss"] * torch.nan}

    monkeypatch.setattr(loss, "forward", broken)
    with pytest.raises(TrainingError):
        finetune(config, run)
    monkeypatch.setattr(loss, "forward", forward)
    finetune(config, run, resume=True)

    assert logged(run) == curve
    resumed = load_file(run.model_file)
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def check_start(run: RunDir, config: FinetuneConfig) -> None:
    """The run's weights are all in the network, and only its new layers learn at the full rate."""
    task = TASKS[config.task]
    state, spec = read_backbone(run.backbone_file)
    source = task.open_splits(config)["train"]
    card = ModelCard(config.task, tuple(source.classes), spec)
    network = task.create(card)
    task.fill(network, state)

    own = network.get_submodule("backbone.features").state_dict()
    assert len(own) > 100
    assert all(torch.equal(value, state[name]) for name, value in own.items())
    learner = task.learner(network, card, source, config)
    scale = learning_rates(learner.model, 0.5)
    assert scale["network.backbone.features.conv1.weight"] < 0.1
    new = {name: rate for name, rate in scale.items() if ".features." not in name}
    assert set(new.values()) == {1.0}
    assert max(rate for name, rate in scale.items() if name not in new) == 0.5


def learning_rates(model: nn.Module, decay: float) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = create_optimizer_v2(model, "adamw", lr=1, layer_decay=decay)
    return {
        names[id(p)]: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]
    }
