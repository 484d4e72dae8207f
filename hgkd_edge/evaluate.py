"""How good are frozen features: k-NN and a linear probe on held-out photos."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hgkd_edge.data.augment import center_view, normalize
from hgkd_edge.data.sources import ImageSource, open_splits
from hgkd_edge.distill import held_out_split, recalibrate_batchnorm
from hgkd_edge.errors import DataError
from hgkd_edge.models.backbone import EmbeddingNet, create_features, load_embedding_net
from hgkd_edge.rundir import RunDir, write_json

__all__ = ["FeatureScores", "embed", "evaluate", "knn_top1", "linear_probe_top1", "majority_top1"]


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


@torch.inference_mode()
def embed(network: EmbeddingNet, source: ImageSource) -> Tensor:
    """Embeddings float32 [n, C] of a source's photos, seen whole."""
    spec = network.spec
    device = next(network.parameters()).device
    parts = []
    for images in source.images.split(128):
        view = center_view(images.to(device), size=spec.size)
        parts.append(network(normalize(view, spec.mean, spec.std)).float().cpu())
    return torch.cat(parts)


def knn_top1(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    classes: int,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> float:
    """Weighted k-NN top-1 on cosine similarity (Wu et al. 2018; DINO's protocol).

    Args:
        train_x: float [n, C].
        train_y: int64 [n].
        test_x: float [m, C].
        test_y: int64 [m].
        classes: Number of classes.
        neighbours: How many neighbours vote.
        temperature: Votes weigh exp(similarity / temperature).
    """
    centre = train_x.mean(dim=0)
    train_x, test_x = F.normalize(train_x - centre, dim=1), F.normalize(test_x - centre, dim=1)
    similarity, nearest = (test_x @ train_x.T).topk(min(neighbours, len(train_x)), dim=1)  # [m, k]
    votes = torch.zeros(len(test_x), classes)
    votes.scatter_add_(1, train_y[nearest], (similarity / temperature).exp())
    return _accuracy(votes, test_y)


def linear_probe_top1(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, classes: int
) -> float:
    """Top-1 of multinomial logistic regression on standardised features.

    The L2 strength is chosen on a fifth of the training photos, never on the test photos.

    Args: as `knn_top1`.
    """
    mean, std = train_x.mean(dim=0), train_x.std(dim=0) + 1e-6
    train_x, test_x = (train_x - mean) / std, (test_x - mean) / std
    order = torch.randperm(len(train_x), generator=torch.Generator().manual_seed(0))
    check, fit = order[: len(order) // 5], order[len(order) // 5 :]
    strengths = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    scores = [
        _accuracy(
            _fit_linear(train_x[fit], train_y[fit], classes, l2)(train_x[check]), train_y[check]
        )
        for l2 in strengths
    ]
    best = strengths[max(range(len(strengths)), key=scores.__getitem__)]
    with torch.no_grad():
        return _accuracy(_fit_linear(train_x, train_y, classes, best)(test_x), test_y)


def majority_top1(train_y: Tensor, test_y: Tensor) -> float:
    """Accuracy of always naming the training photos' most frequent class."""
    return (test_y == train_y.bincount().argmax()).float().mean().item()


def _fit_linear(x: Tensor, y: Tensor, classes: int, l2: float) -> nn.Linear:
    """Logistic regression by L-BFGS, started from zero: the problem is convex."""
    linear = nn.Linear(x.shape[1], classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(linear(x), y) + l2 * linear.weight.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    return linear


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    return (scores.argmax(dim=1) == labels).float().mean().item()
