from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from hgkd_edge.errors import DataError, RecipeError
from hgkd_edge.evaluate import evaluate_model
from hgkd_edge.finetune import finetune
from hgkd_edge.models.backbone import BackboneSpec
from hgkd_edge.rundir import RunDir
from hgkd_edge.score_records import TaskScores
from hgkd_edge.tasks import config as settings
from hgkd_edge.tasks.base import Answers, ModelCard
from hgkd_edge.tasks.config import FinetuneConfig
from hgkd_edge.tasks.segment import Segmentation, SegmentLoss
from tests.engine.helpers import exact_on_a_cpu
from tests.tasks.helpers import (
    QUICK,
    check_onnx_scores_the_same,
    check_resume_is_exact,
    check_start,
    configure,
    logged,
)

CARD = ModelCard(
    "segment", ("sky", "road", "car"), BackboneSpec("resnet18", 4, (8, 8), (0.5,) * 3, (0.25,) * 3)
)


def nuclei(run: RunDir, *overrides: str) -> FinetuneConfig:
    options = ["data.image_size=64", "segment.binary=true", "segment.vertical_flip=true"]
    return configure(run, "segment", "nuclei", *options, *overrides)


def judge(truth: Any, answer: Any, pictures: Path | None = None) -> TaskScores:
    """Scores of answered label maps [B, H, W]."""
    labels = torch.tensor(truth, dtype=torch.uint8)
    logits = np.moveaxis(np.eye(3, dtype=np.float32)[np.array(answer)], -1, 1)
    images = torch.zeros(len(labels), 3, *labels.shape[1:], dtype=torch.uint8)
    return Segmentation().judge([Answers(images, labels, {"logits": logits})], CARD, pictures)


def test_the_interval_of_the_miou_shrinks_with_more_images_and_holds_the_score() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for images in (10, 40, 160):
        truth = rng.integers(0, 3, (images, 4, 4))
        quality = rng.random((images, 1, 1))  # of each image: errors are not spread evenly
        answer = np.where(rng.random(truth.shape) < quality, truth, (truth + 1) % 3)
        scores = judge(truth, answer)
        low, high = scores.intervals.miou
        assert low < scores.miou < high
        widths.append(high - low)

    assert widths[0] > 1.5 * widths[1] > 2 * widths[2]
    assert judge(truth, answer).intervals == scores.intervals, "the same each time"
    assert judge([[[0, 1]]], [[[0, 1]]]).intervals.miou == (1.0, 1.0)


def test_a_few_dozen_steps_beat_all_background_and_onnx_scores_the_same(run: RunDir) -> None:
    config = nuclei(run, "train.epochs=16")

    result = finetune(config, run)

    losses, scores = logged(run), result.scores
    assert len(losses) == 48
    assert np.mean(losses[-6:]) < 0.7 * np.mean(losses[:6])
    confusion = np.array(scores.confusion)
    all_background = confusion[0].sum() / confusion.sum() / 2
    assert scores.miou > all_background + 0.1
    assert scores.per_class["foreground"] > 0.2
    assert result.photos == 8
    check_onnx_scores_the_same(run, config, scores)
    assert len(scores.pictures) == 8
    with Image.open(run.path / "pictures" / "segment-worst-1.png") as picture:
        assert picture.size == (3 * 64 + 2 * 4, 64)
    assert "foreground" in run.card_file.read_text()


@exact_on_a_cpu
def test_broken_off_and_resumed_it_ends_with_the_same_weights(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = nuclei(run, "data.image_size=32", "train.epochs=3", "train.checkpoint_every=1")

    check_resume_is_exact(run, config, SegmentLoss, monkeypatch)


def test_it_starts_from_the_runs_backbone(run: RunDir) -> None:
    check_start(run, nuclei(run))


def test_scores_count_pixels_and_skip_ignored_ones() -> None:
    truth = [[[0, 0, 1, 1], [0, 0, 1, 255]]]
    answer = [[[0, 0, 1, 0], [0, 0, 1, 2]]]

    scores = judge(truth, answer)

    assert scores.confusion == [[4, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert scores.per_class == {"sky": pytest.approx(4 / 5), "road": pytest.approx(2 / 3)}
    assert scores.miou == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert scores.pixel_accuracy == pytest.approx(6 / 7)


def test_the_mean_is_over_the_whole_split_not_over_images() -> None:
    truth = [[[1] * 4] * 4, [[0] * 4] * 4]
    answer = [[[1] * 4] * 4, [[0] * 4] * 3 + [[1] * 4]]

    assert judge(truth, answer).per_class["road"] == pytest.approx(16 / 20)


def test_the_worst_and_the_best_images_are_drawn(tmp_path: Path) -> None:
    truth = [[[1] * 8] * 8] * 10
    answer = [[[1] * 8] * i + [[0] * 8] * (8 - i) for i in (8, 7, 6, 5, 4, 3, 2, 1, 1, 0)]

    pictures = judge(truth, answer, tmp_path).pictures

    names = [Path(file).name for file in pictures]
    assert names == [f"segment-{k}-{i}.png" for k in ("best", "worst") for i in (1, 2, 3, 4)]
    with Image.open(tmp_path / "segment-worst-1.png") as worst:
        pixels = np.asarray(worst)
    assert pixels[:, 12:20].any(axis=2).all(), "the truth is tinted"
    assert not pixels[:, 24:].any(), "the answer is not"


@pytest.mark.parametrize("ignored", [False, True])
def test_the_loss_is_small_for_right_answers_and_finite_for_none(ignored: bool) -> None:
    labels = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    logits = 20.0 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    loss = SegmentLoss(torch.nn.Identity())

    right = loss(logits, torch.full_like(labels, 255) if ignored else labels)
    wrong = loss(-logits, labels)

    assert right["loss"] < 1e-3
    assert wrong["loss"] > 5


def test_ignored_pixels_have_no_gradient() -> None:
    labels = torch.randint(0, 3, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    labels[:, :, 4:] = 255
    logits = torch.randn(1, 3, 8, 8, requires_grad=True)

    SegmentLoss(torch.nn.Identity())(logits, labels)["loss"].backward()

    assert (logits.grad[..., 4:] == 0).all()
    assert (logits.grad[..., :4] != 0).all()


def test_wrong_settings_are_named(run: RunDir) -> None:
    with pytest.raises(RecipeError, match="zoom must hold 0 < low <= high"):
        nuclei(run, "segment.zoom=[2, 1]")
    with pytest.raises(RecipeError, match="did you mean 'segment.binary'"):
        nuclei(run, "segment.binry=true")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("segment.codes=[1, 1]", "must all differ"),
        ("segment.codes=[0, 255]", ""),
        ("segment.codes=[0, 256]", "less than or equal to 255"),
        ("segment.ignore=some", "segment.ignore"),
    ],
)
def test_wrong_codes_are_named(run: RunDir, setting: str, expected: str) -> None:
    if not expected:
        assert nuclei(run, setting, "segment.ignore=7").segment.codes == (0, 255)
        with pytest.raises(RecipeError, match="must all differ"):
            nuclei(run, setting, "segment.ignore=255")
        return
    with pytest.raises(RecipeError, match=expected):
        nuclei(run, setting)


def coded(root: Path, split: str, *maps: tuple[int, ...]) -> None:
    """Images with label maps of bands, one of each code."""
    for i, codes in enumerate(maps):
        for folder in ("images", "masks"):
            (root / split / folder).mkdir(parents=True, exist_ok=True)
        bands = np.repeat(np.array(codes, np.uint8), 60 // len(codes))
        labels = np.tile(bands, (64, 1))
        Image.fromarray(labels).save(root / split / "masks" / f"{i}.png")
        photo = Image.fromarray(labels).convert("RGB")
        photo.save(root / split / "images" / f"{i}.png")


def test_codes_of_the_training_masks_hold_for_resume_and_evaluation(
    run: RunDir, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "coded"
    coded(data, "train", *[(0, 128, 255)] * 4)
    coded(data, "val", (0, 255, 0))
    options = ["data.image_size=64", "train.epochs=1", "train.batch_size=4"]
    config = settings.resolve(run, "segment", data, "distilled", [*QUICK, *options])

    finetune(config, run)
    begun = settings.recorded_settings(run)
    printed = capfd.readouterr().err
    for file in (data / "train" / "masks").iterdir():  # other label maps, by the same tool
        file.unlink()
    coded(data, "train", *[(0, 128, 0)] * 4)
    result = evaluate_model(run)

    assert (begun.segment.codes, begun.segment.ignore) == ((0, 128, 255), "none")
    assert settings.resume(run, options) == begun
    assert "codes 0 (background, " in printed
    assert "255 is a class: the codes are evenly spaced gray levels" in printed
    classes = ["background", "class 128", "class 255"]
    assert run.manifest().labeled_data["train"].classes == classes
    assert result.scores.per_class.keys() >= {"background", "class 255"}
    assert result.scores.ignored_pixels == 0


def test_a_fine_tuning_of_before_codes_were_recorded_keeps_its_classes(run: RunDir) -> None:
    config = nuclei(run).model_dump(mode="json")
    del config["segment"]["codes"], config["segment"]["ignore"], config["data"]["bits"]
    run.finetune_file.write_text(yaml.safe_dump(config))

    begun = settings.recorded_settings(run)
    assert begun.segment.codes == "numbers"
    assert begun.data.bits == 16


def test_the_share_of_ignored_pixels_is_in_the_scores(run: RunDir, tmp_path: Path) -> None:
    data = tmp_path / "coded"
    coded(data, "train", *[(0, 1, 2)] * 4)
    coded(data, "val", (0, 1, 2, 255), (0, 1, 2, 1))
    options = ["data.image_size=64", "train.epochs=1", "train.batch_size=4"]
    config = settings.resolve(run, "segment", data, "distilled", [*QUICK, *options])

    scores = finetune(config, run).scores

    assert scores.ignored_pixels == pytest.approx(1 / 8)
    assert evaluate_model(run).scores.ignored_pixels == pytest.approx(1 / 8)
    assert "ignored_pixels: 0.125" in run.card_file.read_text()


def test_held_out_label_maps_that_are_all_ignored_are_not_scored(
    run: RunDir, tmp_path: Path
) -> None:
    data = tmp_path / "coded"
    coded(data, "train", *[(0, 1, 2)] * 4)
    coded(data, "val", (0, 1, 2))
    coded(data, "test", (255,))
    options = ["data.image_size=64", "train.epochs=1", "train.batch_size=4", "segment.ignore=255"]
    config = settings.resolve(run, "segment", data, "distilled", [*QUICK, *options])

    assert finetune(config, run).split == "val"
    with pytest.raises(DataError, match="'test' cannot be scored: no pixel that is not ignored"):
        evaluate_model(run, split="test")
    assert judge([[[255, 255]]], [[[0, 1]]]).miou == 0


def test_a_share_of_the_labels_is_fixed_by_the_seed(run: RunDir) -> None:
    task = Segmentation()
    first, again, other = (
        task.open_splits(nuclei(run, "label_share=0.25", f"seed={seed}")) for seed in (1, 1, 2)
    )

    assert (len(first["train"]), len(first["val"])) == (6, 8)
    assert first["train"].names == again["train"].names != other["train"].names
    assert len(first["train"].labels) == len(first["train"].images) == 6


def test_the_result_is_plain_json(run: RunDir) -> None:
    finetune(nuclei(run, "train.epochs=1", "label_share=0.5"), run)

    assert json.loads((run.path / "finetune.json").read_text())["metric"] == "miou"
