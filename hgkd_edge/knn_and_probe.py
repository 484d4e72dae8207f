"""Quality of frozen features: embeddings, k-NN, a linear probe."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hgkd_edge.data.augment import center_view, normalize
from hgkd_edge.data.sources import ImageSource
from hgkd_edge.models.backbone import EmbeddingNet

__all__ = [
    "embed",
    "knn_top1",
    "linear_probe",
    "linear_probe_top1",
    "majority_top1",
]

ROWS = 1024  # of test features compared at once with all training features


def embed(network: EmbeddingNet, source: ImageSource) -> tuple[Tensor, Tensor]:
    """Embeddings float32 [n, C] of a source's images, unmasked, and their labels int64 [n].

    Both may be trained on: tensors that are made in inference mode could not be.
    """
    spec = network.spec
    device = next(network.parameters()).device
    parts, labels = [], []
    for images, truth in source.batches(128):
        view = center_view(images.to(device), size=spec.size)
        with torch.inference_mode():
            parts.append(network(normalize(view, spec.mean, spec.std)).float().cpu())
        labels.append(truth)
    return torch.cat(parts), torch.cat(labels)


def knn_top1(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    classes: int,
    neighbors: int = 20,
    temperature: float = 0.07,
) -> float:
    """Weighted k-NN top-1 on cosine similarity (Wu et al. 2018; DINO's protocol).

    Args:
        train_x: float [n, C].
        train_y: int64 [n].
        test_x: float [m, C].
        test_y: int64 [m].
        classes: Number of classes.
        neighbors: How many neighbors vote.
        temperature: Votes weigh exp(similarity / temperature).
    """
    center = train_x.mean(dim=0)
    train_x, test_x = F.normalize(train_x - center, dim=1), F.normalize(test_x - center, dim=1)
    votes = torch.zeros(len(test_x), classes)
    for part, x in zip(votes.split(ROWS), test_x.split(ROWS), strict=True):
        similarity, nearest = (x @ train_x.T).topk(min(neighbors, len(train_x)), dim=1)  # [b, k]
        part.scatter_add_(1, train_y[nearest], (similarity / temperature).exp())
    return _accuracy(votes, test_y)


def linear_probe_top1(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, classes: int
) -> float:
    """Top-1 of multinomial logistic regression on standardized features.

    The L2 strength is chosen on a fifth of the training images, never on the test images.

    Args: as `knn_top1`.
    """
    linear = linear_probe(train_x, train_y, classes=classes)
    with torch.no_grad():
        return _accuracy(linear(test_x), test_y)


def linear_probe(x: Tensor, y: Tensor, *, classes: int) -> nn.Linear:
    """Multinomial logistic regression on features float [n, C] and labels int64 [n].

    For multi-hot labels [n, classes], one logistic regression per class.

    Returns:
        One layer C -> classes that takes raw features: the standardization used in the fit is
        folded into it.
    """
    mean, std = x.mean(dim=0), x.std(dim=0) + 1e-6
    x = (x - mean) / std
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    check, fit = order[: len(order) // 5], order[len(order) // 5 :]
    strengths = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    scores = [
        _quality(_fit_linear(x[fit], y[fit], classes, l2)(x[check]), y[check]) for l2 in strengths
    ]
    linear = _fit_linear(x, y, classes, strengths[max(range(5), key=scores.__getitem__)])
    with torch.no_grad():
        linear.weight.div_(std)
        linear.bias.sub_(linear.weight @ mean)
    return linear


def majority_top1(train_y: Tensor, test_y: Tensor) -> float:
    """Accuracy of always naming the training images' most frequent class."""
    return (test_y == train_y.bincount().argmax()).float().mean().item()


def _fit_linear(x: Tensor, y: Tensor, classes: int, l2: float) -> nn.Linear:
    """Logistic regression by L-BFGS, started from zero: the problem is convex."""
    linear = nn.Linear(x.shape[1], classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _loss(linear(x), y) + l2 * linear.weight.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    return linear


def _loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy; of multi-hot labels that of all classes, summed."""
    if labels.ndim == 1:
        return F.cross_entropy(scores, labels)
    losses = F.binary_cross_entropy_with_logits(scores, labels.float(), reduction="none")
    return losses.sum(dim=1).mean()


def _quality(scores: Tensor, labels: Tensor) -> float:
    """What the L2 strength is chosen by: accuracy, or the likelihood of multi-hot labels."""
    return _accuracy(scores, labels) if labels.ndim == 1 else -_loss(scores, labels).item()


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    return (scores.argmax(dim=1) == labels).float().mean().item()
