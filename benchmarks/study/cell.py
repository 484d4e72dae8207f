"""One cell of the study: a student trained one way with one seed, scored in all ways."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import mean
from typing import Any

from torch import Tensor

from benchmarks.study.protocols import PROTOCOLS
from hgkd_edge.data.sources import ImageSource, open_splits
from hgkd_edge.distillation.distill import distill
from hgkd_edge.distillation.parts import build
from hgkd_edge.distillation.teacher import Teacher
from hgkd_edge.distillation.teacher_weights import load_vit_weights
from hgkd_edge.evaluate import score_features
from hgkd_edge.finetune import finetune
from hgkd_edge.models.backbone import (
    BackboneSpec,
    EmbeddingNet,
    load_embedding_net,
    save_backbone,
)
from hgkd_edge.models.recalibrate import recalibrate_batchnorm
from hgkd_edge.recipe import Recipe
from hgkd_edge.rundir import RunDir
from hgkd_edge.sparse import densify
from hgkd_edge.tasks.config import FinetuneConfig

__all__ = ["finetuned_scores", "score_cell", "score_teacher"]


def score_cell(
    recipe: Recipe, folder: Path, annotated: Path, *, scratch: bool, finetuned: bool
) -> dict[str, Any]:
    """Train a student (or leave it untrained) and score it.

    Args:
        recipe: The arm's recipe, including the seed.
        folder: Run folder of this cell.
        annotated: The data set with its labels; the recipe's own images may be unlabeled.
        scratch: Skip distillation.
        finetuned: Fine-tune with every share of the labels in the protocol, and score on `test`. If
            false, the cell is used for selection and `test` stays unseen.

    Returns:
        For classification: `knn` and `linear_probe` top-1, and the same two in `val`. Also
        `finetune` score by share, single `draws` if it is their mean, `held_out` cosine,
        `seconds_distilled`, and total `seconds`.
    """
    begin = time.monotonic()
    run = RunDir.create(recipe, folder)
    protocol = PROTOCOLS[recipe.name]
    labeled = annotated if protocol.task == "classify" else recipe.data.path
    splits = open_splits(recipe.data.model_copy(update={"path": labeled}))
    cell: dict[str, Any] = {"held_out": {}}
    if scratch:
        _save_untrained(recipe, splits["train"], run)
    else:
        distilled = distill(recipe, run)
        assert distilled is not None, "a cell is one process"
        cell["held_out"] = distilled.to_dict()["held_out"]
        cell["seconds_distilled"] = round(time.monotonic() - begin)
    if protocol.task == "classify":
        network = load_embedding_net(run.backbone_file)
        cell["val"] = score_features(network, splits["train"], splits["val"]).to_dict()
        if finetuned:
            cell |= score_features(network, splits["train"], splits["test"]).to_dict()
    draws = {
        share: finetuned_scores(recipe, run, annotated, share)
        for share in (protocol.epochs if finetuned else {})
    }
    cell["finetune"] = {share: mean(scores) for share, scores in draws.items()}
    cell["draws"] = {share: scores for share, scores in draws.items() if len(scores) > 1}
    return {**cell, "seconds": round(time.monotonic() - begin)}


def _save_untrained(recipe: Recipe, source: ImageSource, run: RunDir) -> None:
    """The initial student, with BatchNorm statistics estimated as in every arm."""
    parts = build(recipe, download=False)
    dense = densify(parts.encoder)
    recalibrate_batchnorm(EmbeddingNet(dense, parts.spec), source, parts.spec)
    save_backbone(dense, parts.spec, run.backbone_file)


class _TeacherFeatures(EmbeddingNet):
    """A teacher in the form that `score_features` expects: images -> one vector of each."""

    def __init__(self, teacher: Teacher, size: tuple[int, int]) -> None:
        # The teacher normalizes by itself.
        super().__init__(teacher, BackboneSpec("", 4, size, mean=(0.0,) * 3, std=(1.0,) * 3))
        self.whole_image = teacher.embedding

    def forward(self, images: Tensor) -> Tensor:
        rows = self.features(images)  # [B, N or N + 1, D] -> [B, D]
        return rows[:, -1] if self.whole_image else rows.mean(dim=1)


def score_teacher(recipe: Recipe, annotated: Path, *, class_token: bool = False) -> dict[str, Any]:
    """`knn` and `linear_probe` top-1 of the teacher itself, and the same two in `val`.

    Args:
        recipe: The recipe with the teacher's weights.
        annotated: The data set with its labels.
        class_token: Score the class token, instead of the mean of the patch tokens.
    """
    parts = build(recipe, download=False)
    splits = open_splits(recipe.data.model_copy(update={"path": annotated}))
    assert recipe.teacher.path is not None
    load_vit_weights(parts.vit, recipe.teacher.path)
    teacher = Teacher(
        parts.vit, layers=recipe.teacher.layers, size=parts.teacher_size, embedding=class_token
    )
    network = _TeacherFeatures(teacher.eval(), recipe.data.size)
    scores = {
        split: score_features(network, splits["train"], splits[split]).to_dict()
        for split in ("val", "test")
    }
    return {"finetune": {}, "val": scores["val"], **scores["test"]}


def finetuned_scores(recipe: Recipe, run: RunDir, annotated: Path, share: float) -> list[float]:
    """The task's metric on held-out images after fine-tuning, the same way in every arm.

    One score per drawing of the labeled images; all arms share the drawings of a seed.
    """
    protocol = PROTOCOLS[recipe.name]
    config = FinetuneConfig.model_validate(
        {
            "task": protocol.task,
            "backbone": run.backbone_file,
            "data": recipe.data.model_dump() | {"path": annotated},
            "label_share": share,
            "train": {
                "epochs": protocol.epochs[share],
                "batch_size": protocol.batch_size,
                "lr": 2e-3,
                "layer_decay": 1.0,  # do not slow down an untrained student's layers
                "precision": recipe.train.precision,
            },
            protocol.task: protocol.settings,
        }
    )
    seeds = [recipe.seed + 1000 * draw for draw in range(protocol.draws.get(share, 1))]
    results = [finetune(config.model_copy(update={"seed": seed}), run) for seed in seeds]
    return [result.single[result.metric] for result in results if result is not None]
