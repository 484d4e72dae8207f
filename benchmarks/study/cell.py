"""One cell of the study: a student trained one way with one seed, scored in every way."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hgkd_edge.data.sources import ImageSource, held_out_split, open_splits
from hgkd_edge.distill import distill
from hgkd_edge.evaluate import score_features
from hgkd_edge.finetune import finetune
from hgkd_edge.models.backbone import EmbeddingNet, load_embedding_net, save_backbone
from hgkd_edge.models.batchnorm import recalibrate_batchnorm
from hgkd_edge.parts import build
from hgkd_edge.recipe import Recipe
from hgkd_edge.rundir import RunDir
from hgkd_edge.sparse import densify
from hgkd_edge.tasks.config import FinetuneConfig

__all__ = ["score_cell"]

# Share of the training labels -> epochs of fine-tuning: fewer photos are seen more often.
FINETUNE_EPOCHS = {
    "clothing10": {0.01: 100, 0.1: 60, 1.0: 20},
    "cifar10": {0.01: 40, 0.1: 15, 1.0: 3},
}


def score_cell(
    recipe: Recipe, folder: Path, *, scratch: bool, shares: list[float]
) -> dict[str, Any]:
    """Train a student (or leave it untrained) and score it.

    Args:
        recipe: The arm's, seed included.
        folder: Run folder of this cell.
        scratch: Do not distil.
        shares: Shares of the training labels to fine-tune with.

    Returns:
        `knn` and `linear_probe` top-1, `finetune` top-1 by share, `held_out` cosine, `seconds`.
    """
    begin = time.monotonic()
    splits = open_splits(recipe.data)
    run = RunDir.create(recipe, folder)
    held_out = {}
    if scratch:
        _save_untrained(recipe, splits["train"], run)
    else:
        held_out = distill(recipe, run)["held_out"]
    network = load_embedding_net(run.backbone_file)
    scores = score_features(network, splits["train"], splits[held_out_split(splits) or "val"])
    return {
        **asdict(scores),
        "held_out": held_out,
        "finetune": {share: _finetuned_top1(recipe, run, share) for share in shares},
        "seconds": round(time.monotonic() - begin),
    }


def _save_untrained(recipe: Recipe, source: ImageSource, run: RunDir) -> None:
    """The student as it starts, with the BatchNorm statistics that every arm gets."""
    parts = build(recipe, download=False)
    dense = densify(parts.encoder)
    recalibrate_batchnorm(EmbeddingNet(dense, parts.spec), source, parts.spec)
    save_backbone(dense, parts.spec, run.backbone_file)


def _finetuned_top1(recipe: Recipe, run: RunDir, share: float) -> float:
    """Held-out top-1 after fine-tuning with a share of the labels, the same way in every arm."""
    config = FinetuneConfig.model_validate(
        {
            "task": "classify",
            "backbone": run.backbone_file,
            "data": recipe.data,
            "seed": recipe.seed,
            "label_share": share,
            "train": {
                "epochs": FINETUNE_EPOCHS[recipe.name][share],
                "batch_size": 64,
                "lr": 2e-3,
                "layer_decay": 1.0,  # an untrained student must not be held back
                "precision": recipe.train.precision,
            },
        }
    )
    return finetune(config, run)["scores"]["top1"]
