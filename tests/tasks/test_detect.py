from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hgkd_edge.finetune import finetune
from hgkd_edge.models.backbone import BackboneSpec
from hgkd_edge.rundir import RunDir
from hgkd_edge.score_records import TaskScores
from hgkd_edge.tasks.base import Answers, ModelCard
from hgkd_edge.tasks.config import FinetuneConfig
from hgkd_edge.tasks.detect import DetectLoss, ObjectDetection
from tests.engine.helpers import exact_on_a_cpu
from tests.tasks.helpers import (
    check_onnx_scores_the_same,
    check_resume_is_exact,
    check_start,
    configure,
    logged,
)

SPEC = BackboneSpec("resnet18", 4, (64, 96), (0.5,) * 3, (0.25,) * 3, {"channels": [8, 8, 16, 32]})
CARD = ModelCard("detect", ("cat", "dog"), SPEC)
TRUTH = torch.tensor(
    [
        [[0.0, 10, 10, 30, 40], [1, 50, 5, 90, 60]],
        [[1.0, 20, 20, 60, 50], [-1, -1, -1, -1, -1]],
    ]
)


def cells(run: RunDir, *overrides: str) -> FinetuneConfig:
    options = ["data.image_size=[120, 160]", "detect.vertical_flip=true"]
    return configure(run, "detect", "bccd", *options, *overrides)


def judge(boxes: Any, scores: Any, pictures: Path | None = None) -> TaskScores:
    """Scores of raw outputs [2, A, 4] and [2, A, 2] against TRUTH."""
    outputs = {"boxes": np.array(boxes, np.float32), "scores": np.array(scores, np.float32)}
    images = torch.zeros(2, 3, 64, 96, dtype=torch.uint8)
    return ObjectDetection().judge([Answers(images, TRUTH, outputs)], CARD, pictures)


@pytest.mark.usefixtures("few_resamples")
def test_a_few_dozen_steps_find_cells_and_onnx_scores_the_same(run: RunDir) -> None:
    config = cells(run, "train.epochs=12")

    result = finetune(config, run)

    losses, scores = logged(run), result.scores
    assert len(losses) == 24
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])
    assert scores.map50 > 0.1, "without boxes it is 0"
    assert scores.map > 0.03
    check_onnx_scores_the_same(run, config, scores)
    with Image.open(run.path / "pictures" / "detect-best-1.png") as picture:
        assert picture.size == (2 * 160 + 4, 120)


@exact_on_a_cpu
def test_broken_off_and_resumed_it_ends_with_the_same_weights(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = cells(run, "data.image_size=[64, 96]", "train.epochs=3", "train.checkpoint_every=1")

    check_resume_is_exact(run, config, DetectLoss, monkeypatch)


def test_it_starts_from_the_runs_backbone(run: RunDir) -> None:
    check_start(run, cells(run))


def test_right_boxes_score_1_and_no_boxes_0() -> None:
    boxes = TRUTH[..., 1:].clamp(min=0).tolist()

    right = judge(boxes, [[[0.9, 0], [0, 0.8]], [[0, 0.7], [0, 0]]])
    nothing = judge(boxes, np.zeros((2, 2, 2)))

    assert right.to_dict() == {
        "map": pytest.approx(1),
        "map50": pytest.approx(1),
        "per_class": {"cat": pytest.approx(1), "dog": pytest.approx(1)},
        "intervals": {"map": pytest.approx((1, 1)), "map50": pytest.approx((1, 1))},
    }
    assert nothing.map == nothing.map50 == 0


def test_a_split_without_any_object_scores_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "TRUTH", torch.full_like(TRUTH, -1))

    for score in (0.0, 0.9):
        scores = judge(np.ones((2, 2, 4)), np.full((2, 2, 2), score))
        assert scores.to_dict() == {"map": 0, "map50": 0, "per_class": {}, "intervals": {}}


def test_a_box_of_the_wrong_class_or_place_earns_nothing() -> None:
    boxes = TRUTH[..., 1:].clamp(min=0)

    swapped = judge(boxes.tolist(), [[[0, 0.9], [0.8, 0]], [[0.7, 0], [0, 0]]])
    shifted = judge((boxes + 3).tolist(), [[[0.9, 0], [0, 0.8]], [[0, 0.7], [0, 0]]])

    assert swapped.map == 0
    assert shifted.map50 == pytest.approx(1)
    assert 0.3 < shifted.map < 0.8


def test_true_and_found_boxes_are_drawn_best_and_worst_first(tmp_path: Path) -> None:
    boxes = TRUTH[..., 1:].clamp(min=0).tolist()

    pictures = judge(boxes, [[[0.9, 0], [0, 0.8]], [[0, 0], [0, 0]]], tmp_path).pictures

    assert [Path(file).name for file in pictures] == [
        f"detect-{kind}-{rank}.png" for kind in ("best", "worst") for rank in (1, 2)
    ]
    with Image.open(tmp_path / "detect-worst-1.png") as worst:
        pixels = np.asarray(worst)
    assert pixels[:, :96].any(), "the box that is there"
    assert not pixels[:, 100:].any(), "was not found"


def test_images_of_nothing_can_be_trained_on() -> None:
    torch.manual_seed(0)
    network = ObjectDetection().create(CARD)
    images = torch.randn(2, 3, 64, 96)

    losses = DetectLoss(network)(images, torch.full((2, 3, 5), -1.0))
    losses["loss"].backward()

    assert losses["bbox_regression"] == 0
    assert losses["loss"].isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
