"""How good are frozen features: k-NN and a linear probe on held-out photos."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from hgkd_edge.data.sources import ImageSource, open_splits
from hgkd_edge.distill import held_out_split, recalibrate_batchnorm
from hgkd_edge.errors import DataError
from hgkd_edge.models.backbone import EmbeddingNet, create_features, load_embedding_net
from hgkd_edge.probe import embed, knn_top1, linear_probe_top1, majority_top1
from hgkd_edge.rundir import RunDir, write_json

__all__ = ["FeatureScores", "evaluate", "score_features"]


@dataclass(frozen=True)
class FeatureScores:
    """Top-1 accuracies in [0, 1] of one network's frozen features."""

    knn: float
    linear_probe: float


def evaluate(run: RunDir) -> dict[str, Any]:
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
