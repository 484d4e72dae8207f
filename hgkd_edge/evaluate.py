"""Evaluate a run: its frozen features, or its fine-tuned model in any runtime."""

from __future__ import annotations

from pathlib import Path

import torch

from exporters.network_files import network_digest
from hgkd_edge.confidence import METHOD, not_better, wilson
from hgkd_edge.data.input_spec import InputSpec
from hgkd_edge.data.sources import (
    ImageSource,
    held_out_split,
    how_to_label,
    open_splits,
    unlearned_classes,
    why_unlabeled,
)
from hgkd_edge.errors import DataError, RunError
from hgkd_edge.files import write_json
from hgkd_edge.finetune import TASKS, answers, weigh
from hgkd_edge.knn_and_probe import embed, knn_top1, linear_probe_top1, majority_top1
from hgkd_edge.models.backbone import (
    EmbeddingNet,
    create_features,
    load_embedding_net,
)
from hgkd_edge.models.recalibrate import recalibrate_batchnorm
from hgkd_edge.provenance import report_photos, report_skipped
from hgkd_edge.records import SCHEMA_VERSION
from hgkd_edge.rundir import RunDir
from hgkd_edge.score_records import (
    Baseline,
    EvaluationRecord,
    FeatureIntervals,
    FeatureRanges,
    FeatureRecord,
    FeatureScores,
)
from hgkd_edge.task_model import TaskModel, open_task_model
from hgkd_edge.tasks.base import ModelCard, read_model
from hgkd_edge.tasks.config import recorded_settings

__all__ = ["evaluate_features", "evaluate_model", "score_features"]


def evaluate_model(
    run: RunDir,
    *,
    model: Path | None = None,
    split: str | None = None,
    trust_engine: bool = False,
) -> EvaluationRecord:
    """Score a fine-tuned model: the run's own file, or one exported from it.

    Args:
        run: Its `finetune.yaml` names the data set.
        model: As for `open_task_model`; None is the run's `model.safetensors`.
        split: Name of the split; None is the held-out split.
        trust_engine: As for `open_task_model`.

    Returns:
        Task, runtime, split, number of images and scores; also written to `evaluation.json`.

    Raises:
        RunError: The run was not fine-tuned, or `model` is of another task, classes or input.
        DataError: There is no such split with labels, or its classes are not the model's.
    """
    config = recorded_settings(run)
    task = TASKS[config.task]
    _, card = read_model(run.require(run.model_file, fix=f"hgkd-edge finetune {run.quoted}"))
    path = model or run.model_file
    opened = open_task_model(path, trust_engine=trust_engine)
    _require_same_model(opened, card, model, run)
    splits = task.open_splits(config)
    name = _split_to_score(splits, split)
    card.require_classes(splits[name])
    report_photos({"train": splits["train"], name: splits[name]})
    batches = answers(opened.session.run, task, card, splits[name])
    # Pictures of the images that `finetune` scores come first; others go to a separate folder.
    unseen = held_out_split(splits, labeled=True)
    scores = task.judge(batches, card, run.pictures_dir / ("" if name == unseen else name))
    result = EvaluationRecord(
        schema_version=SCHEMA_VERSION,
        task=config.task,
        model=str(path),
        sha256=network_digest(path) if path.is_file() else None,
        runtime=opened.session.runtime,
        split=name,
        photos=len(splits[name]),
        fingerprint=splits[name].fingerprint,
        metric=task.metric,
        scores=scores,
    )
    weigh(result, splits["train"], splits[name])
    write_json(run.evaluation_file, result.to_dict())
    return result


def _require_same_model(
    opened: TaskModel, card: ModelCard, model: Path | None, run: RunDir
) -> None:
    """Reject a file that is not the run's own model with its plain inputs and outputs."""
    if (opened.task, opened.classes) != (card.task, card.classes):
        raise RunError(
            f"{model}: for task '{opened.task}' and classes {', '.join(opened.classes)}; "
            f"run '{run.path}' has '{card.task}' and {', '.join(card.classes)}",
            hint="name the run that the model was exported from",
        )
    if opened.input != card.input:
        raise RunError(
            f"{model}: takes {_shown(opened.input)}, run '{run.path}' {_shown(card.input)}",
            hint="name the run that the model was exported from",
        )
    if opened.baked:
        raise RunError(
            f"{model}: it contains its {' and '.join(sorted(opened.baked))} and cannot be scored",
            hint="name the plain file of the same export; predict takes either",
        )


def evaluate_features(run: RunDir, *, split: str | None = None) -> FeatureRecord:
    """Score a run's dense backbone next to the same network untrained and the majority class.

    Args:
        run: Its recipe names the data set.
        split: Name of the split; None is the held-out split.

    Returns:
        Also written to the run's `evaluation.json`.

    Raises:
        DataError: The images carry no labels, or none were held out.
    """
    run.require(run.backbone_file, fix=run.resume_command)
    recipe = run.recipe()
    splits = open_splits(recipe.data)
    if splits["train"].multi_hot:
        raise DataError(
            "k-NN and linear probe take one class per image; these images have several labels",
            hint=f"hgkd-edge finetune {run.quoted}, then hgkd-edge evaluate {run.quoted}",
        )
    if why := why_unlabeled(splits["train"]):
        raise DataError(
            f"evaluate needs labeled images: {why}",
            hint=how_to_label(recipe.data),
        )
    name = _split_to_score(splits, split)
    train, test = splits["train"], splits[name]
    report_skipped({"train": train, name: test})
    trained = load_embedding_net(run.backbone_file)
    torch.manual_seed(recipe.seed)
    spec = trained.spec
    fresh = create_features(spec.name, stem_stride=spec.stem_stride, args=spec.args)
    untrained = EmbeddingNet(fresh, spec).eval()
    # As for the distilled network: BatchNorm statistics of whole images.
    recalibrate_batchnorm(untrained, train, spec)
    result = FeatureRecord(
        schema_version=SCHEMA_VERSION,
        split=name,
        photos={"train": len(train), name: len(test)},
        distilled=score_features(trained, train, test),
        untrained=score_features(untrained, train, test),
        majority=majority_top1(train.labels, test.labels),
    )
    _weigh_features(result, unlearned_classes(train, test))
    write_json(run.evaluation_file, result.to_dict())
    return result


def _weigh_features(result: FeatureRecord, unlearned: str) -> None:
    """Add intervals of the scores, and warnings: no gain over a baseline, parts not trained."""
    count, ours, fresh = result.count, result.distilled, result.untrained
    majority = Baseline(name="majority class", score=result.majority)
    ranges = _ranges(ours, count)
    warnings = []
    for title, score, untrained, interval in (
        ("k-NN", ours.knn, fresh.knn, ranges.knn),
        ("linear probe", ours.linear_probe, fresh.linear_probe, ranges.linear_probe),
    ):
        baselines = (Baseline(name="untrained", score=untrained), majority)
        best = max(baselines, key=lambda baseline: baseline.score)
        line = not_better(title, score, best, interval=interval, count=count)
        warnings += [line] if line else []
    result.intervals = FeatureIntervals(
        distilled=ranges,
        untrained=_ranges(fresh, count),
        majority=wilson(result.majority, count),
    )
    result.interval_method = METHOD
    result.warnings = [text for text in ("; ".join(warnings), unlearned) if text]


def _ranges(scores: FeatureScores, count: int) -> FeatureRanges:
    return FeatureRanges(
        knn=wilson(scores.knn, count), linear_probe=wilson(scores.linear_probe, count)
    )


def _split_to_score(splits: dict[str, ImageSource], asked: str | None) -> str:
    """The name of a split with labels: the requested one, or a held-out one."""
    name = asked or held_out_split(splits, labeled=True)
    if name is None:
        raise DataError(
            "no labeled images were kept from training to score on",
            hint="keep labeled images in val/ or test/, or name --split train",
        )
    if name not in splits:
        raise DataError(f"there is no split '{name}'", hint=f"splits: {', '.join(splits)}")
    if not len(splits[name]):
        raise DataError(f"split '{name}' holds no images", hint=f"splits: {', '.join(splits)}")
    if why := why_unlabeled(splits[name]):
        raise DataError(f"split '{name}' cannot be scored: {why}", hint="name another --split")
    return name


def _shown(spec: InputSpec) -> str:
    height, width = spec.size
    return f"{height} x {width} px (mean {spec.mean}, deviation {spec.std}, {spec.geometry})"


def score_features(network: EmbeddingNet, train: ImageSource, test: ImageSource) -> FeatureScores:
    """k-NN and linear-probe accuracy on `test`, learned from `train`."""
    known, asked = embed(network, train), embed(network, test)
    classes = len(train.classes)
    return FeatureScores(
        knn=knn_top1(*known, *asked, classes=classes),
        linear_probe=linear_probe_top1(*known, *asked, classes=classes),
    )
