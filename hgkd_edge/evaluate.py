"""How good is a run: its frozen features, or its fine-tuned model in any runtime."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hgkd_edge.data.sources import ImageSource, held_out_split, open_splits
from hgkd_edge.errors import DataError, RunError
from hgkd_edge.finetune import TASKS, answers
from hgkd_edge.models.backbone import EmbeddingNet, create_features, load_embedding_net
from hgkd_edge.models.batchnorm import recalibrate_batchnorm
from hgkd_edge.probe import embed, knn_top1, linear_probe_top1, majority_top1
from hgkd_edge.provenance import report_photos
from hgkd_edge.rundir import RunDir, write_json
from hgkd_edge.serving import open_served
from hgkd_edge.tasks.base import read_model
from hgkd_edge.tasks.config import resume

__all__ = ["FeatureScores", "evaluate_features", "evaluate_model", "score_features"]


@dataclass(frozen=True)
class FeatureScores:
    """Top-1 accuracies in [0, 1] of one network's frozen features."""

    knn: float
    linear_probe: float


def evaluate_model(
    run: RunDir, *, model: Path | None = None, split: str | None = None
) -> dict[str, Any]:
    """Score a fine-tuned model: the run's own file, or one exported from it.

    Args:
        run: Its `finetune.yaml` says where the photos are.
        model: What `open_served` takes; None is the run's `model.safetensors`.
        split: Name of the split; None is the one kept from training.

    Returns:
        Task, runtime, split, number of photos and scores; also written to `evaluation.json`.

    Raises:
        RunError: The run was not fine-tuned, or `model` is of another task or other classes.
        DataError: There is no such split.
    """
    config = resume(run)
    task = TASKS[config.task]
    _, card = read_model(run.require(run.model_file, mend=f"hgkd-edge finetune {run.path}"))
    served = open_served(model or run.model_file)
    if (served.task, served.classes) != (card.task, card.classes):
        raise RunError(
            f"{model}: for task '{served.task}' and classes {', '.join(served.classes)}; "
            f"run '{run.path}' has '{card.task}' and {', '.join(card.classes)}",
            hint="name the run that the model was exported from",
        )
    splits = task.open_splits(config)
    name = split or held_out_split(splits)
    if name not in splits:
        raise DataError(f"there is no split '{name}'", hint=f"splits: {', '.join(splits)}")
    if tuple(splits[name].classes) != card.classes:
        raise DataError(
            f"the photos have classes {', '.join(splits[name].classes)}, "
            f"the model has {', '.join(card.classes)}",
            hint="name photos with the classes that the model was fine-tuned on",
        )
    report_photos({"train": splits["train"], name: splits[name]})
    batches = answers(served.run, task, card, splits[name])
    result = {
        "task": config.task,
        "model": str(model or run.model_file),
        "runtime": served.runtime,
        "split": name,
        "photos": len(splits[name]),
        "metric": task.metric,
        "scores": task.judge(batches, card, run.path / "pictures"),
    }
    write_json(run.path / "evaluation.json", result)
    return result


def evaluate_features(run: RunDir) -> dict[str, Any]:
    """Score a run's dense backbone beside the same network untrained and the majority class.

    Returns:
        Also written to the run's `evaluation.json`.

    Raises:
        DataError: The photos carry no labels, or none were held out.
    """
    run.require(
        run.backbone_file, mend=f"hgkd-edge distill {run.recipe_file} --resume --run {run.path}"
    )
    recipe = run.recipe()
    splits = open_splits(recipe.data)
    name = held_out_split(splits)
    if name is None or not (splits["train"].labelled and splits[name].labelled):
        raise DataError(
            "evaluate needs labelled photos in two splits",
            hint="keep photos in one subfolder per class, with data.holdout > 0 or a test/ folder",
        )
    train, test = splits["train"], splits[name]
    trained = load_embedding_net(run.backbone_file)
    torch.manual_seed(recipe.seed)
    spec = trained.spec
    fresh = create_features(spec.name, stem_stride=spec.stem_stride, args=spec.args)
    untrained = EmbeddingNet(fresh, spec).eval()
    # The same favour that the distilled network gets: statistics of whole photos.
    recalibrate_batchnorm(untrained, train, spec)
    result = {
        "split": name,
        "photos": {"train": len(train), name: len(test)},
        "distilled": asdict(score_features(trained, train, test)),
        "untrained": asdict(score_features(untrained, train, test)),
        "majority": majority_top1(train.labels, test.labels),
    }
    write_json(run.path / "evaluation.json", result)
    return result


def score_features(network: EmbeddingNet, train: ImageSource, test: ImageSource) -> FeatureScores:
    """k-NN and linear-probe accuracy on `test`, learnt from `train`."""
    train_x, test_x = embed(network, train), embed(network, test)
    classes = len(train.classes)
    return FeatureScores(
        knn=knn_top1(train_x, train.labels, test_x, test.labels, classes=classes),
        linear_probe=linear_probe_top1(train_x, train.labels, test_x, test.labels, classes=classes),
    )
