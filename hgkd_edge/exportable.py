"""What is exported from a run: its network, a description of it, and images to verify on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from exporters import ExportError, runtimes
from exporters.runtimes import Runner
from exporters.sensitivity import Score
from hgkd_edge.data.augment import center_view, normalize
from hgkd_edge.data.input_spec import InputSpec
from hgkd_edge.data.sources import ImageSource, held_out_split, open_splits
from hgkd_edge.data.spread import evenly
from hgkd_edge.export_record import MOST_SCORED
from hgkd_edge.finetune import TASKS, answers, load_model
from hgkd_edge.knn_and_probe import knn_top1
from hgkd_edge.models.backbone import BackboneSpec, load_embedding_net
from hgkd_edge.provenance import report_skipped
from hgkd_edge.records import Images
from hgkd_edge.rundir import RunDir
from hgkd_edge.tasks.answers import GEOMETRY
from hgkd_edge.tasks.config import recorded_settings
from hgkd_edge.tasks.metadata import EMBED

__all__ = ["Exportable", "load_exportable"]

_GALLERY = 1000  # training images in the k-NN gallery


@dataclass(frozen=True)
class Exportable:
    """A network and the metadata for its files.

    Attributes:
        network: Normalized images f[B, 3, H, W] -> one tensor for each of `output_names`.
        weights: The file it was loaded from.
        task: `classify`, `multilabel`, `segment`, `detect`, or `embed` for a bare backbone.
        classes: Class names in the order of the outputs; for a backbone those of the data set.
        spec: Architecture, image size, normalization.
        output_names: Names of its outputs.
        splits: Images by split.
        view: Canvases uint8 [B, 3, H_c, W_c] -> what the network sees, f[B, 3, H, W].
        score: Points (0 to 100) of a runner on held-out images.
        scored: Name of the split that `score` uses; None if no images it can use are held out.
        metric: Name of that score.
        input_ranges: Those of a quantization-aware network, see `ModelCard`.
        threshold: As in `ModelCard`.
    """

    network: nn.Module
    weights: Path
    task: str
    classes: tuple[str, ...]
    spec: BackboneSpec
    output_names: tuple[str, ...]
    splits: dict[str, ImageSource]
    view: Callable[[Tensor], Tensor]
    score: Score
    scored: str | None
    metric: str
    input_ranges: Mapping[str, float] = field(default_factory=dict)
    threshold: float | None = None

    @property
    def input(self) -> InputSpec:
        """The network's input and its preprocessing."""
        return self.spec.input(GEOMETRY.get(self.task, "cover"))

    def canvases(self, split: str, count: int) -> Tensor:
        """At most `count` images, spread over a split (images are sorted by class), uint8."""
        source = self.splits[split]
        return source.images[torch.tensor(evenly(len(source), count), dtype=torch.int64)]

    def images(self, split: str, count: int) -> np.ndarray:
        """The same images as the network sees them, float32 [n, 3, H, W]."""
        parts = [self.view(part).numpy() for part in self.canvases(split, count).split(64)]
        return np.concatenate(parts)

    def frames(self, count: int, size: tuple[int, int] | None) -> np.ndarray:
        """Images as camera frames, uint8 [n, H, W, 3]; the default size has no special meaning."""
        canvases = self.canvases(self.unseen, count).permute(0, 2, 3, 1).numpy()
        size = size or (canvases.shape[1] * 5 // 4, canvases.shape[2] * 5 // 3)
        photos = [Image.fromarray(np.ascontiguousarray(canvas)) for canvas in canvases]
        return np.stack([np.asarray(photo.resize(size[::-1])) for photo in photos])

    def prepared(self, frames: np.ndarray) -> np.ndarray:
        """Frames after hgkd-edge's preprocessing, float32 [n, 3, H, W]."""
        return np.concatenate([self.input.array(Image.fromarray(frame)) for frame in frames])

    @property
    def unseen(self) -> str:
        """The split used for verification: the held-out one, or `train` if there is none."""
        return held_out_split(self.splits) or "train"

    @property
    def scored_on(self) -> Images | None:
        """The images that `score` uses; None if there are none."""
        if self.scored is None:
            return None
        source = self.splits[self.scored]
        images = min(MOST_SCORED, len(source))
        return Images(split=self.scored, images=images, fingerprint=source.fingerprint)


def load_exportable(run: RunDir, *, backbone: bool = False) -> Exportable:
    """A run's fine-tuned model, or its dense backbone where there is none (or `backbone` says so).

    Raises:
        RunError: The run has no weights yet.
        DataError: The images it was trained on cannot be read.
    """
    if run.model_file.is_file() and not backbone:
        return _fine_tuned(run)
    return _bare(run)


def _fine_tuned(run: RunDir) -> Exportable:
    network, card = load_model(run.model_file)
    task = TASKS[card.task]
    splits = task.open_splits(recorded_settings(run))
    report_skipped(splits)
    scored = held_out_split(splits, labeled=True)

    def score(runner: Runner) -> float:
        source = _held_out(splits, scored, "labeled images")
        card.require_classes(source)
        judged = task.judge(answers(runner, task, card, source), card)
        return 100 * judged.single[task.metric]

    return Exportable(
        network=network,
        weights=run.model_file,
        task=card.task,
        classes=card.classes,
        spec=card.backbone,
        output_names=tuple(task.output_names),
        splits=splits,
        view=lambda canvases: task.view(canvases, card),
        score=score,
        scored=scored,
        metric=task.metric,
        input_ranges=card.input_ranges,
        threshold=card.threshold,
    )


def _bare(run: RunDir) -> Exportable:
    network = load_embedding_net(run.require(run.backbone_file, fix=run.resume_command))
    spec, splits = network.spec, open_splits(run.recipe().data)
    report_skipped(splits)
    labeled = all(source.one_class for source in splits.values() if len(source))
    scored = held_out_split(splits)  # without labels, it is scored by its likeness

    def view(canvases: Tensor) -> Tensor:
        return normalize(center_view(canvases, size=spec.size), spec.mean, spec.std)

    def score(runner: Runner) -> float:
        test = _held_out(splits, scored, "images")
        if labeled:
            return 100 * _knn(runner, view, splits["train"], test)
        return 100 * _likeness(runner, runtimes.open(network, names=["embedding"]).run, view, test)

    return Exportable(
        network=network,
        weights=run.backbone_file,
        task=EMBED,
        classes=tuple(splits["train"].classes),
        spec=spec,
        output_names=("embedding",),
        splits=splits,
        view=view,
        score=score,
        scored=scored,
        metric="k-NN top-1" if labeled else "mean cosine with the float network",
    )


def _knn(
    runner: Runner, view: Callable[[Tensor], Tensor], train: ImageSource, test: ImageSource
) -> float:
    """k-NN top-1 in [0, 1]; the gallery goes through the same network, as in deployment."""
    known = _embed(runner, view, train.sample(_GALLERY))
    asked = _embed(runner, view, test)
    return knn_top1(*known, *asked, classes=len(train.classes))


def _likeness(
    runner: Runner, reference: Runner, view: Callable[[Tensor], Tensor], test: ImageSource
) -> float:
    """Mean cosine of two networks' embeddings, image by image."""
    (wanted, _), (got, _) = _embed(reference, view, test), _embed(runner, view, test)
    return nn.functional.cosine_similarity(wanted, got).mean().item()


def _embed(
    runner: Runner, view: Callable[[Tensor], Tensor], source: ImageSource
) -> tuple[Tensor, Tensor]:
    """Embeddings float32 [n, C] of a source's images, and their labels int64 [n]."""
    pairs = ((runner(view(x).numpy())["embedding"], labels) for x, labels in source.batches(64))
    parts, labels = zip(*pairs, strict=True)
    return torch.from_numpy(np.concatenate(parts)), torch.cat(labels)


def _held_out(splits: dict[str, ImageSource], name: str | None, what: str) -> ImageSource:
    if name is None:
        raise ExportError(
            f"--max-drop needs {what} that were held out, and this run has none",
            hint=f"keep {what} in val/ or test/",
        )
    return splits[name].sample(MOST_SCORED)
