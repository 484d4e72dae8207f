from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import hgkd_edge
from exporters import runtimes
from hgkd_edge.cli import app
from hgkd_edge.confidence import score_intervals, wilson
from hgkd_edge.errors import DataError, RecipeError, RunError
from hgkd_edge.evaluate import evaluate_model
from hgkd_edge.files import file_sha256, write_json
from hgkd_edge.finetune import answers, finetune, load_model, starting_weights, weigh
from hgkd_edge.models.backbone import BackboneSpec
from hgkd_edge.predict import predict
from hgkd_edge.report.scores import scores_section
from hgkd_edge.rundir import RunDir
from hgkd_edge.score_records import FinetuneRecord, TaskRecord, TaskScores
from hgkd_edge.tasks import config as settings
from hgkd_edge.tasks.base import Answers, ModelCard, save_model
from hgkd_edge.tasks.classify import Classification, ClassifyTraining
from hgkd_edge.tasks.config import FinetuneConfig
from hgkd_edge.tasks.pictures import draw_confusion
from tests.engine.helpers import exact_on_a_cpu
from tests.started import Started
from tests.tasks.conftest import untrained

QUICK = ["train.precision=fp32", "train.lr=3e-3", "train.layer_decay=1", "classify.augment=none"]
CARD = ModelCard(
    "classify", ("a", "b", "c"), BackboneSpec("resnet18", 4, (32, 32), (0.5,) * 3, (0.25,) * 3)
)


def configure(run: RunDir, *overrides: str, init: str = "distilled") -> FinetuneConfig:
    return settings.resolve(run, "classify", None, init, [*QUICK, *overrides])


def judge(logits: list[list[float]], labels: list[int]) -> TaskScores:
    images = torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8)
    batch = Answers(images, torch.tensor(labels), {"logits": np.array(logits, np.float32)})
    return Classification().judge([batch], CARD)


class Tuned(NamedTuple):
    """A fine-tuned run, which tests only read."""

    run: RunDir
    config: FinetuneConfig
    record: TaskRecord


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    run = untrained(tmp_path_factory.mktemp("tuned") / "demo")
    config = configure(run, "train.epochs=3", "train.warmup_epochs=1", "classify.probe_first=false")
    return Tuned(run, config, finetune(config, run))


def test_a_few_epochs_beat_the_majority_class_and_the_loss_falls(tuned: Tuned) -> None:
    losses = [json.loads(line)["loss"] for line in (tuned.run.path / "finetune.jsonl").open()]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.2
    assert tuned.record.scores.top1 > 0.25, "the majority class is 14 %"


def test_the_model_file_is_a_plain_timm_classifier(tuned: Tuned) -> None:
    model = timm.create_model("resnet18", num_classes=10, channels=[16, 32, 64, 128])
    model.load_state_dict(load_file(tuned.run.model_file))


def test_a_loaded_model_scores_what_was_reported(tuned: Tuned) -> None:
    network, card = load_model(tuned.run.model_file)
    task = Classification()
    test = task.open_splits(tuned.config)["test"]
    run = runtimes.open(network, names=["logits"]).run
    again = task.judge(answers(run, task, card, test), card)

    assert again.confusion == tuned.record.scores.confusion
    assert card.classes[:2] == ("dress", "hat")


def test_the_card_names_classes_preprocessing_and_scores(tuned: Tuned) -> None:
    run, _, result = tuned
    card = run.card_file.read_text()
    assert "dress, hat, longsleeve" in card
    assert "32 x 32 px" in card
    low, high = result.intervals.top1
    assert f"top1: {result.scores.top1:.4f} (95 % interval {low:.4f} to {high:.4f})" in card
    with Image.open(run.path / "pictures" / "confusion.png") as picture:
        assert min(picture.size) > 300


def test_the_cards_snippet_gives_what_predict_answers(
    tuned: Tuned, photos: Path, tmp_path: Path
) -> None:
    network, card = load_model(tuned.run.model_file)
    snippet = tuned.run.card_file.read_text().split("```python\n")[1].split("```")[0]
    scope: dict[str, Any] = {}
    exec(snippet, scope)

    made = predict(tuned.run.model_file, [photos / "test"], tmp_path / "predictions")

    for one in made:
        with torch.inference_mode():
            logits = network(torch.from_numpy(scope["preprocess"](one.photo)))[0]
        for label in one.found.labels:
            chance = logits.softmax(0)[card.classes.index(label.name)].item()
            assert chance == pytest.approx(label.probability, abs=1e-5)


def test_beginning_from_a_linear_probe_beats_beginning_from_a_random_head(run: RunDir) -> None:
    config = configure(run, "label_share=0.5")
    task = Classification()
    source = task.open_splits(config)["train"]
    card = ModelCard("classify", tuple(source.classes), CARD.backbone)
    first_losses = []
    for probe_first in (True, False):
        torch.manual_seed(0)
        network = task.create(card)
        options = config.model_copy(
            update={"classify": config.classify.model_copy(update={"probe_first": probe_first})}
        )
        model = task.learner(network, card, source, options).model.eval()
        view, labels = task.view(source.images[::8], card), source.labels[::8]
        with torch.no_grad():
            first_losses.append(model(view, torch.eye(len(card.classes))[labels])["loss"].item())

    assert first_losses[0] < first_losses[1] - 0.1


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_a_share_of_the_labels_holds_every_class(run: RunDir, share: float) -> None:
    source = Classification().open_splits(configure(run, f"label_share={share}"))["train"]

    counts = source.labels.bincount(minlength=10)
    assert counts.min() >= 1
    assert len(source) == pytest.approx(1628 * share, abs=10)


def test_balance_gives_rare_classes_more_weight(run: RunDir) -> None:
    config = configure(run, "classify.balance=true", "classify.probe_first=false")
    task = Classification()
    source = task.open_splits(config)["train"]
    card = ModelCard("classify", tuple(source.classes), CARD.backbone)

    learner = task.learner(task.create(card), card, source, config)

    counts, weight = source.labels.bincount(), learner.model.weight
    assert weight.argmax() == counts.argmin()
    assert weight[source.labels].mean() == pytest.approx(1.0)


def test_mixed_images_have_mixed_labels(run: RunDir) -> None:
    config = configure(run, "classify.mixup=1", "classify.cutmix=1", "classify.probe_first=false")
    task = Classification()
    source = task.open_splits(config)["train"]
    card = ModelCard("classify", tuple(source.classes), CARD.backbone)
    learner = task.learner(task.create(card), card, source, config)
    assert isinstance(learner, ClassifyTraining)
    from hgkd_edge.engine import Draws

    draws = Draws(torch.Generator().manual_seed(0), 0, 1, torch.device("cpu"))
    ((_, targets),) = learner.inputs(source.images[::100], source.labels[::100], draws)

    torch.testing.assert_close(targets.sum(dim=1), torch.ones(len(targets)))
    assert ((targets > 0).sum(dim=1) == 2).any()


def test_early_layers_learn_more_slowly_under_layer_decay(run: RunDir) -> None:
    from timm.optim import create_optimizer_v2

    config = configure(run, "train.layer_decay=0.5", "classify.probe_first=false")
    task = Classification()
    source = task.open_splits(config)["train"]
    card = ModelCard("classify", tuple(source.classes), CARD.backbone)
    learner = task.learner(task.create(card), card, source, config)

    optimizer = create_optimizer_v2(learner.model, "adamw", lr=1, layer_decay=learner.layer_decay)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    network = learner.model.get_submodule("network")
    stem, head = network.get_parameter("conv1.weight"), network.get_parameter("fc.weight")

    assert scale[id(stem)] < 0.1
    assert scale[id(head)] == 1


def test_scores_count_what_they_say() -> None:
    scores = judge([[3, 1, 0], [3, 1, 0], [0, 1, 3], [1, 0, 3]], [0, 1, 2, 0])

    assert scores.top1 == 0.5
    assert scores.per_class == {"a": 0.5, "b": 0.0, "c": 1.0}
    assert scores.mean_class == pytest.approx(0.5)
    assert scores.confusion == [[1, 0, 1], [1, 0, 0], [0, 0, 1]]


def test_scores_carry_intervals_and_a_baseline(run: RunDir) -> None:
    splits = Classification().open_splits(configure(run))
    card = ModelCard("classify", tuple(splits["train"].classes), CARD.backbone)
    test = splits["test"]
    majority = splits["train"].labels.bincount().argmax()
    always = np.eye(10, dtype=np.float32)[[majority] * len(test)]
    scores = Classification().judge(
        [Answers(torch.empty(0), test.labels, {"logits": always})], card
    )
    found = TaskRecord(task="classify", metric="top1", photos=len(test), scores=scores)

    weigh(found, splits["train"], test)

    assert found.baseline.name == "majority class"
    assert found.baseline.score == pytest.approx(scores.top1)
    assert found.intervals.top1 == wilson(scores.top1, 372)
    assert len(found.intervals.per_class) == 10
    (warning,) = found.warnings
    assert "is not better than the baseline: majority class, 14.0 %" in warning


def test_classes_that_training_never_saw_are_named_with_the_score(run: RunDir) -> None:
    splits = Classification().open_splits(configure(run))
    card = ModelCard("classify", tuple(splits["train"].classes), CARD.backbone)
    train, test = splits["train"], splits["test"]
    lacking = train.subset((train.labels != 1).nonzero().flatten())
    right = np.eye(10, dtype=np.float32)[test.labels.numpy()]
    scores = Classification().judge([Answers(torch.empty(0), test.labels, {"logits": right})], card)
    result = TaskRecord(task="classify", metric="top1", photos=len(test), scores=scores)

    weigh(result, lacking, test)

    (warning,) = result.warnings
    count = int((test.labels == 1).sum())
    assert f"{count} of 372 images are of classes without a training image" in warning
    assert test.classes[1] in warning
    weigh(result, train, test)
    assert result.warnings == []


def test_five_best_are_counted_where_there_are_more_and_unseen_classes_are_skipped() -> None:
    logits = -np.arange(7.0)[None].repeat(3, 0)
    card = replace(CARD, classes=tuple("abcdefg"))
    batch = Answers(torch.empty(0), torch.tensor([0, 4, 5]), {"logits": logits})

    scores = Classification().judge([batch], card)

    assert scores.top5 == pytest.approx(2 / 3)
    assert scores.per_class == {"a": 1.0, "e": 0.0, "f": 0.0}
    assert "top5" not in judge([[3, 1, 0]], [0]).single


@pytest.mark.parametrize("setting", ["train.compile=true", "train.evaluate_every=5"])
def test_a_setting_of_distillation_is_refused_and_loads_from_earlier_files(
    run: RunDir, setting: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        configure(run, setting)

    assert caught.value.message == f"--set {setting}: is for distillation only; remove it"
    config = configure(run)
    key, value = setting.removeprefix("train.").split("=")
    content = config.model_dump(mode="json")
    run.finetune_file.write_text(yaml.safe_dump(content))
    assert settings.recorded_settings(run) == config
    content["train"][key] = yaml.safe_load(value)
    run.finetune_file.write_text(yaml.safe_dump(content))
    assert settings.recorded_settings(run) == config


def test_thousands_of_classes_give_a_small_record_and_the_report_names_the_mistakes(
    run: RunDir,
) -> None:
    names = tuple(f"kind {i}" for i in range(2500))
    logits = np.eye(2500, dtype=np.float32)[[7, 7, 9, 9]]
    batch = Answers(torch.empty(0), torch.tensor([7, 8, 8, 8]), {"logits": logits})

    scores = Classification().judge([batch], replace(CARD, classes=names))
    record = FinetuneRecord(task="classify", metric="top1", photos=4, split="val", scores=scores)
    record.intervals = score_intervals(scores, names)
    write_json(run.finetune_result_file, record.to_dict())
    section = scores_section(run)

    assert run.finetune_result_file.stat().st_size < 100_000
    assert run.finetune_result() == record
    assert record.intervals.top1 == wilson(0.25, 4)
    assert record.intervals.per_class == {"kind 7": wilson(1, 1), "kind 8": wilson(0, 3)}
    cells = [[cell.text for cell in row] for row in section.blocks[-1].rows]
    assert cells == [["class 8", "class 9", "2", "66.7 %"], ["class 8", "class 7", "1", "33.3 %"]]


def test_the_confusion_of_a_thousand_classes_is_a_picture_that_fits(tmp_path: Path) -> None:
    file = draw_confusion(
        np.eye(1000, dtype=int), [f"class {i}" for i in range(1000)], tmp_path / "c.png"
    )

    with Image.open(file) as picture:
        assert max(picture.size) <= 2000


def test_images_without_labels_are_refused(run: RunDir, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "plain.png")
    plain = configure(run, f"data={{source: folder, path: {tmp_path}, holdout: 0}}")
    announced: list[str] = []

    with pytest.raises(DataError, match="needs labeled images"):
        finetune(plain, run, opened=lambda: announced.append("run folder"))

    assert announced == [], "a folder is named before it is known whether it is needed"


def test_wrong_settings_are_named(run: RunDir) -> None:
    with pytest.raises(RecipeError, match="train.epoch.*did you mean 'train.epochs'"):
        configure(run, "train.epoch=3")
    with pytest.raises(RecipeError, match="did you mean 'classify'"):
        settings.resolve(run, "clasify", None, "distilled")
    with pytest.raises(RunError, match=r"has no finetune.yaml"):
        settings.resume(run)


@exact_on_a_cpu
def test_killed_and_resumed_it_ends_with_the_same_weights(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--set", "label_share=0.1", "--set", "train.epochs=4"]
    for override in QUICK:
        options += ["--set", override]
    config = configure(run, "label_share=0.1", "train.epochs=4", "train.checkpoint_every=1")
    finetune(config, run)
    wanted = load_file(run.model_file)
    run.model_file.unlink()
    run.finetune_file.unlink()  # the run is as if nothing had been fine-tuned in it
    (run.path / "checkpoints" / "finetune.pt").unlink()
    command = ["finetune", str(run.path), *options, "--set", "train.checkpoint_every=1"]
    begun = Started(*command)
    begun.wait_for(run.path / "checkpoints" / "finetune.pt", lines=0)
    begun.send_signal(signal.SIGKILL)
    begun.end()
    assert not run.model_file.is_file()
    monkeypatch.delattr("hgkd_edge.tasks.classify.linear_probe")  # is not taken again

    resumed = CliRunner().invoke(app, ["finetune", str(run.path), "--resume"])

    assert resumed.exit_code == 0, resumed.output
    again = load_file(run.model_file)
    assert all(torch.equal(again[key], wanted[key]) for key in wanted)


def test_a_second_fine_tuning_keeps_the_first(run: RunDir) -> None:
    quick = ["train.epochs=1", "label_share=0.1", *QUICK]
    options = [part for setting in quick for part in ("--set", setting)]
    finetune(configure(run, *quick), run)
    first = file_sha256(run.model_file)
    command = ["finetune", str(run.path)]

    refused = CliRunner().invoke(app, [*command, "--resume", "--set", "train.epochs=9"])
    second = CliRunner().invoke(app, [*command, "--init", "scratch", *options])

    assert isinstance(refused.exception, RunError)
    assert "started with other values of train.epochs" in str(refused.exception)
    assert second.exit_code == 0, second.output
    assert file_sha256(run.model_file) == first
    own = RunDir.resolve("demo-scratch")
    assert own.model_file.is_file()
    assert file_sha256(own.backbone_file) == file_sha256(run.backbone_file)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"init": "distilled"}, ""), ({"init": "scratch", "train.epochs": 3}, "init, train.epochs")],
)
def test_a_fine_tuning_resumes_with_its_own_settings_only(
    run: RunDir, changes: dict[str, Any], expected: str
) -> None:
    config = configure(run, "train.epochs=1")
    run.finetune_file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    asked = [f"{key}={value}" for key, value in changes.items()]

    if not expected:
        assert settings.resume(run, asked) == config
        return
    with pytest.raises(RunError, match=f"other values of {expected}"):
        settings.resume(run, asked)


@pytest.mark.parametrize("name", ["2024", "null", "a: b", "photos #1", "photos 📷"])
def test_a_data_path_that_looks_like_yaml_is_the_same_path_when_resumed(
    run: RunDir, photos: Path, name: str
) -> None:
    shutil.copytree(photos / "test", name)
    config = settings.resolve(run, "classify", Path(name), "distilled")
    run.finetune_file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    for file in (run.model_file, run.finetune_result_file, run.card_file):
        file.touch()

    resumed = hgkd_edge.load(run.path).finetune(data=name, resume=True)

    assert resumed.path == run.path


def test_weights_of_the_hub_without_a_network_are_one_clear_error(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = timm.create_model

    def offline(*args: Any, pretrained: bool = False, **more: Any) -> Any:
        if pretrained:
            raise OSError("no network")
        return create(*args, **more)

    monkeypatch.setattr(timm, "create_model", offline)

    with pytest.raises(
        RecipeError, match="--init timm: weights of 'resnet18' cannot be downloaded"
    ):
        starting_weights(configure(run, "init=timm"))


def test_evaluate_says_which_split_cannot_be_scored_and_why(run: RunDir, photos: Path) -> None:
    data = run.path / "photos"
    shutil.copytree(photos, data)
    (data / "val").mkdir()
    for photo in [*(data / "test").rglob("*.webp")]:
        photo.rename(data / "test" / photo.name)  # in no class folder
    config = configure(
        run, f"data={{source: folder, path: {data}, image_size: 32}}", "train.epochs=1"
    )

    result = finetune(config, run)

    assert result.scores is None  # images without labels are no held-out split
    with pytest.raises(DataError, match="no labeled images were kept from training"):
        evaluate_model(run)
    with pytest.raises(DataError, match="split 'test' cannot be scored"):
        evaluate_model(run, split="test")
    with pytest.raises(DataError, match="split 'val' holds no images"):
        evaluate_model(run, split="val")
    assert evaluate_model(run, split="train").photos == 48


def test_a_model_of_another_input_is_not_scored(tuned: Tuned, tmp_path: Path) -> None:
    network, card = load_model(tuned.run.model_file)
    other = replace(card, backbone=replace(card.backbone, size=(64, 64)))
    save_model(network, other, tmp_path / "other.safetensors")

    with pytest.raises(RunError, match="takes 64 x 64 px"):
        evaluate_model(tuned.run, model=tmp_path / "other.safetensors")


def test_evaluate_gives_the_same_scores_whichever_runtime_serves(
    tuned: Tuned, tmp_path: Path
) -> None:
    from hgkd_edge.export import export_run

    run = RunDir(Path(shutil.copytree(tuned.run.path, tmp_path / "demo")))
    export_run(run)
    (onnx_file,) = run.export_dir.glob("*.onnx")

    ours = evaluate_model(run)
    theirs = evaluate_model(run, model=onnx_file)

    assert (ours.runtime, theirs.runtime) == ("PyTorch", "ONNX Runtime")
    assert ours.scores.confusion == theirs.scores.confusion
    with pytest.raises(DataError, match="no split 'val'"):
        evaluate_model(run, split="val")
