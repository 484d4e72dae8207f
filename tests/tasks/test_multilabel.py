from __future__ import annotations

import importlib.util
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchmetrics.functional.classification import (
    multilabel_average_precision,
    multilabel_f1_score,
    multilabel_precision,
    multilabel_recall,
)

from exporters import ExportError, runtimes
from hgkd_edge.api.model import load_model as load_opened
from hgkd_edge.api.run import Run
from hgkd_edge.bundles import require_bundle
from hgkd_edge.confidence import task_baseline
from hgkd_edge.data.sources import open_splits
from hgkd_edge.distillation.parts import build
from hgkd_edge.errors import DataError, RunError
from hgkd_edge.evaluate import evaluate_features, evaluate_model
from hgkd_edge.export import export_run
from hgkd_edge.export_options import ExportOptions
from hgkd_edge.exportable import load_exportable
from hgkd_edge.finetune import TASKS, finetune, load_model
from hgkd_edge.knn_and_probe import linear_probe
from hgkd_edge.models.backbone import save_backbone
from hgkd_edge.predict import predict
from hgkd_edge.recipe import find_recipe, load_recipe
from hgkd_edge.recipe_sections import DataConfig
from hgkd_edge.report import report
from hgkd_edge.rundir import RunDir
from hgkd_edge.score_records import FinetuneRecord
from hgkd_edge.sparse import densify
from hgkd_edge.survey import survey
from hgkd_edge.task_model import open_task_model
from hgkd_edge.tasks import config as settings
from hgkd_edge.tasks.answers import FileAnswer, Found, Label, load_photo, sigmoid
from hgkd_edge.tasks.classify import _stratified
from hgkd_edge.tasks.config import FinetuneConfig
from hgkd_edge.tasks.label_scores import score_labels
from hgkd_edge.tasks.multilabel import MultiLabelTraining, _positive_weights
from hgkd_edge.tasks.saved_labels import save_labels
from tests.conftest import extract_photos
from tests.tasks.labeled import write_labels_table

QUICK = [
    "train.precision=fp32",
    "train.lr=3e-3",
    "train.layer_decay=1",
    "train.batch_size=16",
    "train.ema=0.8",
    "train.warmup_epochs=1",
    "classify.augment=none",
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 training and 48 test images of four classes, two photos in each."""
    root = tmp_path_factory.mktemp("several")
    extract_photos(root / "train", split="train", per_class=16, classes=5)
    extract_photos(root / "test", split="test", per_class=8, classes=5)
    return write_labels_table(root, root / "labeled", train=96, test=48)


def new_run(path: Path, table: Path) -> RunDir:
    """A run of the demo's recipe at 32 px on the table, with an untrained backbone."""
    recipe = load_recipe(
        find_recipe("demo"),
        [
            "data.image_size=32",
            "data.source=folder",
            f"data.path={table}",
            "student.stem_stride=4",
            "student.args={channels: [8, 16, 24, 32]}",
            "seed=1",  # learns clearly in few epochs, whichever versions compute
        ],
    )
    made = RunDir.create(recipe, path)
    parts = build(recipe)
    save_backbone(densify(parts.encoder), parts.spec, made.backbone_file)
    return made


def configure(run: RunDir, *overrides: str) -> FinetuneConfig:
    return settings.resolve(run, "classify", None, "distilled", [*QUICK, *overrides])


@pytest.fixture(scope="module")
def tuned(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, FinetuneRecord]:
    """A run fine-tuned for a few epochs, and its record."""
    run = new_run(tmp_path_factory.mktemp("tuned") / "demo", table)
    result = finetune(configure(run, "train.epochs=12", "classify.probe_first=false"), run)
    assert result is not None
    return run, result


def test_scores_are_those_of_torchmetrics_also_where_scores_are_equal() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(60, 5)).round(1)  # many are equal
    truth = rng.random((60, 5)) < (sigmoid(logits) + 0.2) / 2
    shares, labels = torch.tensor(sigmoid(logits)), torch.tensor(truth.astype(int))

    scores = score_labels(logits, sigmoid(logits) >= 0.4, truth, list("abcde"))

    average = multilabel_average_precision(shares, labels, 5, average=None)
    assert list(scores.per_class.values()) == pytest.approx(average.tolist())
    assert scores.mean_ap == pytest.approx(average.mean().item())
    at = {"num_labels": 5, "threshold": 0.3999}
    for mean in ("micro", "macro"):
        wanted = multilabel_f1_score(shares, labels, average=mean, **at).item()
        assert scores.single[f"{mean}_f1"] == pytest.approx(wanted)
    for name, metric in (("precision", multilabel_precision), ("recall", multilabel_recall)):
        wanted = metric(shares, labels, average=None, **at).tolist()
        assert [getattr(one, name) for one in scores.per_label.values()] == pytest.approx(wanted)
    for name, (low, high) in scores.intervals.single.items():
        assert low < scores.single[name] < high


def test_a_class_without_an_image_is_skipped_in_means_and_has_no_average_precision() -> None:
    logits, truth = np.array([[3.0, 1], [-3, 2]]), np.array([[True, False], [False, False]])

    scores = score_labels(logits, logits > 0, truth, ["a", "b"])

    assert (scores.mean_ap, scores.macro_f1, scores.per_class) == (1, 1, {"a": 1})
    assert scores.per_label["b"].average_precision is None
    assert task_baseline("multilabel", scores, 0, count=2).score == 0.5


def test_a_random_order_scores_about_its_baseline() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((2000, 3)) < (0.1, 0.3, 0.6)
    logits = rng.normal(size=truth.shape)

    scores = score_labels(logits, logits > 0, truth, list("abc"))

    baseline = task_baseline("multilabel", scores, 0, count=2000).score
    assert scores.mean_ap == pytest.approx(baseline, abs=0.02)


def test_fine_tuning_learns_every_label_and_beats_a_random_order(
    tuned: tuple[RunDir, FinetuneRecord],
) -> None:
    run, result = tuned

    losses = [json.loads(line)["loss"] for line in (run.path / "finetune.jsonl").open()]
    assert np.mean(losses[-6:]) < np.mean(losses[:6])
    assert (result.task, result.metric, result.photos) == ("multilabel", "mean_ap", 48)
    assert result.intervals.mean_ap[0] > result.baseline.score
    assert result.scores.per_label.keys() == {"dress", "longsleeve", "outwear", "pants"}
    card = run.card_file.read_text()
    assert "those whose sigmoid is at least 0.5" in card
    assert f"- mean_ap: {result.scores.mean_ap:.4f} (95 % interval" in card
    assert load_model(run.model_file)[1].threshold == 0.5


@pytest.fixture(scope="module")
def exported(tuned: tuple[RunDir, FinetuneRecord]) -> RunDir:
    """The same run with INT8 files, plain and with a sigmoid inside."""
    options = ExportOptions(
        precision="int8",
        flavors=("cpu",),
        bake_postprocessing=True,
        bundles=("predict", "triton", "timm"),
    )
    export_run(tuned[0], options)
    return tuned[0]


def test_exported_files_score_as_reported_and_int8_is_bounded_by_the_same_score(
    tuned: tuple[RunDir, FinetuneRecord], exported: RunDir
) -> None:
    run, result = tuned
    wanted = pytest.approx(result.scores.mean_ap, abs=1e-3)
    subject = load_exportable(run)

    scored = evaluate_model(run, model=run.export_dir / "demo.fp32.onnx")

    assert scored.scores.mean_ap == wanted
    assert subject.metric == "mean_ap"
    assert subject.score(runtimes.open(run.export_dir / "demo.fp32.onnx").run) / 100 == wanted
    files = list(run.export_dir.glob("*.onnx"))
    assert len(files) == 3
    for file in files:
        opened = open_task_model(file)
        assert (opened.task, opened.threshold) == ("multilabel", 0.5)
        assert np.isfinite(opened.outputs(Image.new("RGB", (40, 30)))[_output(file)]).all()


def _output(file: Path) -> str:
    return "label_probabilities" if "baked" in file.name else "label_logits"


def test_predictions_are_the_labels_above_the_threshold_in_plain_and_baked_files(
    exported: RunDir, table: Path, tmp_path: Path
) -> None:
    run = exported
    files = [table.parent / f"test-{i:03d}.png" for i in range(6)]
    network, card = load_model(run.model_file)
    images = np.concatenate([card.input.array(load_photo(file)) for file in files])
    with torch.inference_mode():
        float_shares = network(torch.from_numpy(images)).sigmoid().numpy()
    quantized = runtimes.open(run.export_dir / "demo.int8-cpu.onnx").run
    int8_shares = np.concatenate([sigmoid(quantized(x[None])["label_logits"]) for x in images])

    for name, shares in (
        ("demo.fp32.onnx", float_shares),
        ("demo.int8-cpu.baked.onnx", int8_shares),
    ):
        for threshold in (None, 0.2):
            made = predict(run.export_dir / name, files, tmp_path / name, threshold=threshold)
            for one, row in zip(made, shares, strict=True):
                found = {label["name"]: label["probability"] for label in one.to_dict()["labels"]}
                wanted = dict(zip(card.classes, row.tolist(), strict=True))
                assert found == pytest.approx(
                    {k: v for k, v in wanted.items() if v >= (threshold or 0.5)}, abs=1e-4
                )
                assert list(found.values()) == sorted(found.values(), reverse=True)
                assert Path(one.picture).is_file(), "with and without labels"


def test_a_prediction_in_python_names_its_labels_or_says_that_there_are_none(
    exported: RunDir, table: Path
) -> None:
    model = load_opened(exported.export_dir / "demo.fp32.onnx")
    file = table.parent / "test-000.png"

    (some,) = model.predict(file, threshold=0.01)
    (none,) = model.predict(file, threshold=0.999)

    assert {label.name for label in some.labels} == set(model.classes)
    assert str(some).startswith(f"{file}: {some.labels[0].name} ")
    assert (none.labels, str(none)) == ([], f"{file}: no label")
    assert none.record["labels"] == []
    np.testing.assert_array_equal(np.asarray(none.picture), np.asarray(load_photo(file)))


def test_bundles_give_the_same_labels_and_deepstream_refuses(
    exported: RunDir, table: Path, tmp_path: Path
) -> None:
    run, files = exported, sorted(table.parent.glob("test-00*.png"))
    folder = run.export_dir / "predict"
    spec = importlib.util.spec_from_file_location("script", folder / "predict.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    known, network = script.load_settings(folder), script.open_onnx(folder / "model.onnx")
    threshold = script.threshold_of(known, math.nan)
    made = predict(run.export_dir / "demo.int8-cpu.baked.onnx", files, tmp_path)

    assert threshold == 0.5
    for file, one in zip(files, made, strict=True):
        image = script.load_image(file)
        answered = script.answer(known, network, image, threshold)
        assert answered["labels"] == one.to_dict()["labels"]
        assert script.draw(known, image, answered).size == image.size
    config = (run.export_dir / "triton" / "models" / "demo" / "config.pbtxt").read_text()
    assert re.search(r'"label_probabilities"\n.*\n.*\n *label_filename: "labels.txt"', config)
    assert "output[0].sigmoid()) if share >= 0.5" in (run.export_dir / "timm/README.md").read_text()
    with pytest.raises(ExportError, match="a model of the task multilabel is not supported") as bad:
        require_bundle("deepstream", load_exportable(run))
    assert "triton, timm, predict, jetson" in bad.value.hint


def test_the_report_and_the_terminal_show_every_class(
    tuned: tuple[RunDir, FinetuneRecord],
) -> None:
    run, result = tuned

    page, text = report(run).read_text(), repr(Run(run).finetuned)

    assert "Mean average precision" in page
    assert "Multi-label classification" in page
    for name, one in result.scores.per_label.items():
        assert f"{100 * one.f1:.1f}\N{NO-BREAK SPACE}%" in page
        assert re.search(rf"{name} .* {one.images} .* {100 * one.recall:.1f} %", text)


def test_saved_labels_are_read_again_as_they_were(table: Path, tmp_path: Path) -> None:
    files = sorted(table.parent.glob("train-00*.png"))
    classes = ["dress, long", "longsleeve", "pants"]
    held = [classes[:2], [], classes[2:], *[classes[1:]] * (len(files) - 3)]
    answers = [
        FileAnswer(
            str(file), Found(tags=[Label(name, 0.9) for name in names]), picture=f"{i:04d}-x.png"
        )
        for i, (file, names) in enumerate(zip(files, held, strict=True))
    ]

    count = save_labels(answers, classes, tmp_path / "out", format="csv", threshold=0.5)

    source = open_splits(DataConfig(path=tmp_path / "out" / "labels.csv", image_size=32, holdout=0))
    read = source["train"]
    assert (count, len(read), read.skipped) == (len(files), len(files), [])
    found = [[read.classes[i] for i in np.flatnonzero(row)] for row in read.labels.numpy()]
    assert found == held
    with pytest.raises(DataError, match="class 'Split' cannot be a column"):
        save_labels(answers, ["Split", "b"], tmp_path / "no", format="csv", threshold=0.5)


def test_a_few_labels_hold_every_class_and_images_without_a_label(table: Path) -> None:
    config = FinetuneConfig.model_validate(
        {"task": "multilabel", "backbone": "x", "data": {"path": table}, "label_share": 0.2}
    )
    whole = open_splits(config.data)["train"].labels

    chosen = whole[_stratified(whole, config)]

    assert 0.2 * len(whole) <= len(chosen) <= 0.35 * len(whole)
    assert (chosen.sum(dim=0) >= (0.2 * whole.sum(dim=0)).round()).all()
    assert (~chosen.any(dim=1)).any()


def test_mixing_keeps_the_shares_of_labels_of_the_mixed_images(
    table: Path, tuned: tuple[RunDir, FinetuneRecord]
) -> None:
    run, _ = tuned
    config = configure(run, "classify.mixup=1")
    network, card = load_model(run.model_file)
    learner = MultiLabelTraining(network, card, open_splits(config.data)["train"], config)
    labels = torch.eye(4, dtype=torch.int8)
    view = labels[:, :, None, None].float().expand(4, 4, 8, 8)[:, :3]

    torch.manual_seed(0)
    mixed, targets = learner.mixed(view, labels)

    assert ((targets > 0) & (targets < 1)).any()
    torch.testing.assert_close(mixed.mean(dim=(2, 3)), targets[:, :3])


def test_a_linear_probe_of_several_labels_is_one_logistic_regression_each() -> None:
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.stack([x[:, 0] > 0, x[:, 1] > 1, x[:, 2] + x[:, 3] < 0], dim=1).to(torch.int8)

    decided = linear_probe(x, labels, classes=3)(x) > 0

    assert ((decided == (labels > 0)).float().mean(dim=0) > 0.95).all()


def test_balance_weighs_a_rare_label_by_its_rarity() -> None:
    labels = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]], dtype=torch.int8)

    assert _positive_weights(labels).tolist() == [3, 0.25, 3]


def test_one_class_per_image_can_be_learned_as_labels(photos: Path, tmp_path: Path) -> None:
    config = FinetuneConfig.model_validate(
        {"task": "multilabel", "backbone": "x", "data": {"path": photos, "image_size": 32}}
    )

    source = TASKS["multilabel"].open_splits(config)["train"]

    assert source.labels.sum(dim=0).tolist() == [16, 16, 16]
    assert source.labels.sum(dim=1).unique().tolist() == [1]


def test_the_task_follows_from_the_labels_and_resumes_as_it_was_asked_for(
    tuned: tuple[RunDir, FinetuneRecord],
) -> None:
    run = tuned[0]
    config = configure(run)

    assert config.task == "multilabel"
    assert settings.resume(run, ["task=classify"]).task == "multilabel"
    with pytest.raises(RunError, match="other values of task"):
        settings.resume(run, ["task=segment"])
    with pytest.raises(DataError, match="the task classify takes one class per image"):
        TASKS["classify"].open_splits(config)
    with pytest.raises(DataError, match="take one class per image"):
        evaluate_features(run)


def test_the_survey_counts_images_per_class_and_those_without_a_label(table: Path) -> None:
    found = survey(DataConfig(path=table))

    labels = open_splits(DataConfig(path=table, image_size=32))["train"].labels
    assert found.tasks == ["multilabel"]
    assert list(found.splits["train"].objects.values()) == labels.sum(dim=0).tolist()
    assert found.splits["train"].empty == int((~labels.any(dim=1)).sum()) > 0


def test_the_network_is_a_plain_timm_classifier(tuned: tuple[RunDir, FinetuneRecord]) -> None:
    import timm

    model = timm.create_model("resnet18", num_classes=4, channels=[8, 16, 24, 32])
    model.load_state_dict(load_file(tuned[0].model_file))
