"""Classification: one class per image, with the plain timm classifier of the backbone; top-1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hgkd_edge.console import track_steps
from hgkd_edge.data.augment import CROP_DRAWS, center_view, normalize, random_view
from hgkd_edge.data.sources import ImageSource, how_to_label, open_splits, why_unlabeled
from hgkd_edge.engine import Draws, Training
from hgkd_edge.errors import DataError
from hgkd_edge.knn_and_probe import linear_probe
from hgkd_edge.models.backbone import create_classifier, fill_classifier
from hgkd_edge.score_records import TaskScores
from hgkd_edge.tasks.augment import augmentation, mixing
from hgkd_edge.tasks.base import Answers, ModelCard, VisionTask
from hgkd_edge.tasks.config import ClassifyConfig, FinetuneConfig
from hgkd_edge.tasks.pictures import draw_confusion

__all__ = ["Classification", "Classifier", "ClassifyTraining"]

MOST_CLASSES = 500  # of a confusion matrix in JSON: its file grows with their square
MISTAKES = 20  # kept of a larger one, as many as the report lists


class Classification(VisionTask):
    """The task, for `finetune`, `evaluate` and `export`."""

    name = "classify"
    output_names: tuple[str, ...] = ("logits",)
    metric = "top1"

    def open_splits(self, config: FinetuneConfig) -> dict[str, ImageSource]:
        splits = open_splits(config.data)
        self.adapt(splits)
        source = splits["train"]
        if why := why_unlabeled(source):
            raise DataError(
                f"fine-tuning for classification needs labeled images: {why}",
                hint=how_to_label(config.data),
            )
        if config.label_share < 1:
            splits["train"] = source.subset(_stratified(source.labels, config))
        return splits

    def adapt(self, splits: dict[str, ImageSource]) -> None:
        """Bring labels into the form that the task learns.

        Raises:
            DataError: Images have several labels.
        """
        if splits["train"].multi_hot:
            raise DataError(
                "images have several labels, the task classify takes one class per image",
                hint="hgkd-edge finetune --task multilabel",
            )

    def create(self, card: ModelCard) -> nn.Module:
        return create_classifier(card.backbone, len(card.classes))

    def fill(self, network: nn.Module, state: dict[str, Tensor]) -> None:
        fill_classifier(network, state)

    def learner(
        self, network: nn.Module, card: ModelCard, source: ImageSource, config: FinetuneConfig
    ) -> ClassifyTraining:
        if config.classify.probe_first and config.init != "scratch":
            self._start_from_probe(network, card, source)
        return self.training(network, card, source, config)

    def training(
        self, network: nn.Module, card: ModelCard, source: ImageSource, config: FinetuneConfig
    ) -> ClassifyTraining:
        """What the engine trains, once the network has its initial weights."""
        return ClassifyTraining(network, card, source, config)

    @torch.no_grad()
    def _start_from_probe(self, network: nn.Module, card: ModelCard, source: ImageSource) -> None:
        """Initialize the last layer with a linear probe on the network's own features (LP-FT).

        Kumar et al. 2022, arXiv 2202.10054: a random head's first gradients distort features.
        """
        head = network.get_classifier()  # type: ignore[operator]
        if not isinstance(head, nn.Linear):
            return  # a convolutional head keeps its initialization
        device = "cuda" if torch.cuda.is_available() else "cpu"
        network.to(device).eval()
        features, labels = [], []
        with track_steps("images for the linear probe", total=len(source)) as show:
            for images, truth in source.batches(128):
                view = self.view(images.to(device), card)
                maps = network.forward_features(view)  # type: ignore[operator]
                pooled = network.forward_head(maps, pre_logits=True)  # type: ignore[operator]
                features.append(pooled.float().cpu())  # [B, C]
                labels.append(truth)
                show(sum(map(len, labels)), "")
        with torch.enable_grad():
            probe = linear_probe(torch.cat(features), torch.cat(labels), classes=len(card.classes))
        head.weight.copy_(probe.weight)
        head.bias.copy_(probe.bias)

    def view(self, images: Tensor, card: ModelCard) -> Tensor:
        spec = card.backbone
        return normalize(center_view(images, size=spec.size), spec.mean, spec.std)

    def judge(
        self, answers: Iterable[Answers], card: ModelCard, pictures: Path | None = None
    ) -> TaskScores:
        """`top1`, `mean_class` and `per_class` accuracy in [0, 1], `confusion` counts.

        Includes `top5` if there are more than five classes. Classes without an image are skipped.
        More than `MOST_CLASSES` have `mistakes` and `class_counts` instead of `confusion`.
        """
        pairs = [(batch.outputs["logits"], batch.labels.numpy()) for batch in answers]
        logits, labels = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
        best = np.argsort(-logits, axis=1)[:, :5]  # [n, 5]
        confusion = np.zeros((len(card.classes),) * 2, int)  # [true, predicted]
        np.add.at(confusion, (labels, best[:, 0]), 1)
        counts = confusion.sum(axis=1)
        recall = confusion.diagonal() / np.maximum(counts, 1)
        seen = np.flatnonzero(counts)
        scores = TaskScores(
            top1=float((best[:, 0] == labels).mean()),
            mean_class=float(recall[seen].mean()),
            per_class={card.classes[i]: float(recall[i]) for i in seen},
        )
        if len(card.classes) <= MOST_CLASSES:
            scores.confusion = confusion.tolist()
        else:
            scores.class_counts, scores.mistakes = counts.tolist(), _mistakes(confusion)
        if len(card.classes) > best.shape[1]:
            scores.top5 = float((best == labels[:, None]).any(axis=1).mean())
        if pictures is not None:
            file = draw_confusion(confusion, card.classes, pictures / "confusion.png")
            scores.pictures = [str(file)]
        return scores


class ClassifyTraining(Training):
    """Training: augmented, optionally mixed images and their soft labels."""

    def __init__(
        self, network: nn.Module, card: ModelCard, source: ImageSource, config: FinetuneConfig
    ) -> None:
        options = config.classify
        self.model: nn.Module = self.with_loss(network, source, options)
        self.layer_decay: float | None = config.train.layer_decay
        self.spec, self.data = card.backbone, config.data
        self.num_classes = len(card.classes)
        self.augment = augmentation(options)
        self.options = options

    def with_loss(
        self, network: nn.Module, source: ImageSource, options: ClassifyConfig
    ) -> nn.Module:
        """The network with its loss."""
        weight = _class_weights(source) if options.balance else None
        return Classifier(network, options.label_smoothing, weight)

    def inputs(self, images: Tensor, labels: Tensor, draws: Draws) -> Iterator[tuple[Tensor, ...]]:
        if self.augment is not None:
            images = torch.stack([self.augment(image) for image in images])
        view = random_view(
            images,
            draws.on_cpu(len(images), CROP_DRAWS),
            size=self.spec.size,
            scale=self.data.crop_scale,
            flip=self.data.flip,
        )
        yield self.mixed(normalize(view, self.spec.mean, self.spec.std), labels)

    def mixed(self, view: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed images and their soft labels, f[B, classes]."""
        if (mix := mixing(self.options, self.num_classes)) is not None:
            return mix(view, labels)
        return view, F.one_hot(labels, self.num_classes).float()


class Classifier(nn.Module):
    """A network with its loss.

    Args:
        network: Images f[B, 3, H, W] -> logits f[B, classes].
        smoothing: Label smoothing.
        weight: Weight of every class, f[classes], or None.
    """

    def __init__(self, network: nn.Module, smoothing: float, weight: Tensor | None) -> None:
        super().__init__()
        self.network = network
        self.smoothing = smoothing
        self.register_buffer("weight", weight, persistent=False)
        head = network.pretrained_cfg["classifier"]  # type: ignore[index]
        self.pretrained_cfg = {"classifier": f"network.{head}"}  # above timm's layer decay

    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Loss and accuracy for images f[B, 3, H, W] and soft labels f[B, classes]."""
        logits = self.network(images).float()
        loss = F.cross_entropy(
            logits,
            targets,
            weight=self.weight,  # type: ignore[arg-type]
            label_smoothing=self.smoothing,
        )
        hits = logits.argmax(dim=1) == targets.argmax(dim=1)
        return {"loss": loss, "accuracy": hits.float().mean()}


def _mistakes(confusion: np.ndarray) -> list[tuple[int, int, int]]:
    """The most frequent ones: true class, predicted class and number of images."""
    true, predicted = np.nonzero(confusion)
    wrong = true != predicted
    true, predicted = true[wrong], predicted[wrong]
    counts = confusion[true, predicted]
    best = np.argsort(-counts, kind="stable")[:MISTAKES]
    columns = (true[best].tolist(), predicted[best].tolist(), counts[best].tolist())
    return list(zip(*columns, strict=True))


def _stratified(labels: Tensor, config: FinetuneConfig) -> Tensor:
    """Indices of a share of every class's images, at least one per class, int64 [m].

    Where images have several labels, classes are filled up from the rarest on (Sechidis et al.
    2011), and images without a label count as one more class. A frequent class can get more images.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(config.seed))
    if labels.ndim == 2:
        return _stratified_rarest_first(labels.bool(), order, config.label_share)
    kept = []
    for label in labels.unique():
        own = order[labels[order] == label]
        kept.append(own[: max(1, round(len(own) * config.label_share))])
    return torch.cat(kept).sort().values


def _stratified_rarest_first(labels: Tensor, order: Tensor, share: float) -> Tensor:
    groups = torch.cat([labels, ~labels.any(dim=1, keepdim=True)], dim=1)  # [n, classes + 1]
    counts = groups.sum(dim=0)
    chosen = torch.zeros(len(groups), dtype=torch.bool)
    for group in counts.argsort().tolist():
        wanted = max(1, round(int(counts[group]) * share)) - int((groups[:, group] & chosen).sum())
        own = order[groups[order, group] & ~chosen[order]]
        chosen[own[: max(0, wanted)]] = True
    return chosen.nonzero().flatten()


def _class_weights(source: ImageSource) -> Tensor:
    """The inverse frequency of every class, mean 1 over the images, float [classes]."""
    counts = source.labels.bincount(minlength=len(source.classes)).clamp(min=1)
    return len(source.labels) / (len(source.classes) * counts.float())
