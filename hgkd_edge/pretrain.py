"""`teacher.weights: pretrain`: train the teacher itself on the recipe's photos, and keep it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from hgkd_edge.console import console
from hgkd_edge.data.augment import IMAGENET_MEAN, IMAGENET_STD, normalize, random_view
from hgkd_edge.data.sources import ImageSource
from hgkd_edge.engine import Draws, Workplace, resolve_precision, train
from hgkd_edge.errors import DataError
from hgkd_edge.models.mae import LabelTuner, MaskedAutoencoder
from hgkd_edge.models.teacher import require_plain_vit, save_vit_weights
from hgkd_edge.processes import on_main
from hgkd_edge.recipe import PretrainConfig, Recipe, TrainConfig
from hgkd_edge.rundir import atomic_write, cache_dir, write_json

__all__ = ["pretrain_teacher"]


class MaskedAutoencoding:
    """Task: reconstruct masked patches of augmented photos."""

    updates_per_batch = 1
    capturable = False
    layer_decay: float | None = None

    def __init__(self, model: MaskedAutoencoder, recipe: Recipe, size: tuple[int, int]) -> None:
        self.model: nn.Module = model
        self.num_tokens = model.num_tokens
        self.size, self.crop_scale = size, recipe.data.crop_scale

    def inputs(self, images: Tensor, labels: Tensor, draws: Draws) -> Iterator[tuple[Tensor, ...]]:
        view = _view(images, draws, self.size, self.crop_scale)
        yield view, draws.uniform(len(images), self.num_tokens)


class LabelTuning:
    """Task: classify augmented photos by the mean patch token."""

    updates_per_batch = 1
    capturable = False
    layer_decay: float | None = None

    def __init__(self, model: LabelTuner, recipe: Recipe, size: tuple[int, int]) -> None:
        self.model: nn.Module = model
        self.size, self.crop_scale = size, recipe.data.crop_scale

    def inputs(self, images: Tensor, labels: Tensor, draws: Draws) -> Iterator[tuple[Tensor, ...]]:
        yield _view(images, draws, self.size, self.crop_scale), labels


def pretrain_teacher(
    vit: nn.Module,
    source: ImageSource,
    recipe: Recipe,
    *,
    size: tuple[int, int],
    resume_command: str = "run the same command again",
) -> Path:
    """Pre-train a ViT on the training photos, or find it done in the cache.

    Stopped in the middle, the next call goes on from its checkpoint.

    Args:
        vit: The untrained Transformer; left trained.
        source: Training photos.
        recipe: The whole recipe; its `teacher.pretrain` says how.
        size: Height and width in pixels that the teacher sees.
        resume_command: What a user types to go on when this is stopped.

    Returns:
        The teacher's weights, `model.safetensors` in the cache, under a hash of all that they
        depend on: photos, architecture, settings, seed.

    Raises:
        RecipeError: The teacher is not a plain timm VisionTransformer.
        DataError: Label tuning is asked for on unlabelled photos.
    """
    config = recipe.teacher.pretrain
    if config.label_epochs and not source.labelled:
        raise DataError("teacher.pretrain.label_epochs: the photos carry no labels")
    folder = cache_dir() / "teachers" / _content_hash(recipe, source, size)
    weights = folder / "model.safetensors"
    if on_main(weights.is_file):
        console.print(f"teacher: found pre-trained in {folder}")
        return weights
    torch.manual_seed(recipe.seed)
    mae = MaskedAutoencoder(
        require_plain_vit(vit, recipe.teacher.name),
        mask_ratio=config.mask_ratio,
        decoder_width=config.decoder_width,
        decoder_depth=config.decoder_depth,
    )
    schedule = _schedule(config, recipe.train, epochs=config.epochs, lr=config.lr)
    trained = train(
        MaskedAutoencoding(mae, recipe, size),
        source,
        schedule,
        seed=recipe.seed,
        place=_workplace(folder, "mae", "lr", resume_command),
        label="pre-training the teacher",
        resume=True,
    )
    encoder = trained.get_submodule("encoder")
    if config.label_epochs:
        place = _workplace(folder, "labels", "label_lr", resume_command)
        encoder = _tune_with_labels(encoder, source, recipe, size, place)
    on_main(lambda: _save(encoder, weights, recipe, source, size))
    return weights


def _save(
    encoder: nn.Module, weights: Path, recipe: Recipe, source: ImageSource, size: tuple[int, int]
) -> None:
    with atomic_write(weights) as temporary:
        save_vit_weights(encoder, temporary, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    write_json(
        weights.parent / "teacher.json",
        {
            "teacher": recipe.teacher.model_dump(mode="json"),
            "photos": {"count": len(source), "fingerprint": source.fingerprint},
            "size": size,
            "seed": recipe.seed,
        },
    )


def _tune_with_labels(
    encoder: nn.Module,
    source: ImageSource,
    recipe: Recipe,
    size: tuple[int, int],
    place: Workplace,
) -> nn.Module:
    config = recipe.teacher.pretrain
    assert isinstance(encoder, VisionTransformer), "checked by pretrain_teacher"
    schedule = _schedule(config, recipe.train, epochs=config.label_epochs, lr=config.label_lr)
    tuned = train(
        LabelTuning(LabelTuner(encoder, num_classes=len(source.classes)), recipe, size),
        source,
        schedule,
        seed=recipe.seed + 1,
        place=place,
        label="tuning the teacher with labels",
        resume=True,
    )
    return tuned.get_submodule("encoder")


def _view(
    images: Tensor, draws: Draws, size: tuple[int, int], crop_scale: tuple[float, float]
) -> Tensor:
    view = random_view(images, draws.on_cpu(len(images), 5), size=size, scale=crop_scale)
    return normalize(view, IMAGENET_MEAN, IMAGENET_STD)


def _schedule(config: PretrainConfig, base: TrainConfig, *, epochs: int, lr: float) -> TrainConfig:
    return TrainConfig(
        epochs=epochs,
        batch_size=config.batch_size,
        lr=lr,
        weight_decay=config.weight_decay,
        warmup_epochs=epochs / 20,
        precision=base.precision,
        checkpoint_every=10,
    )


def _workplace(folder: Path, stage: str, lr: str, resume_command: str) -> Workplace:
    return Workplace(
        log_file=folder / f"{stage}.jsonl",
        checkpoint_file=folder / f"{stage}.pt",
        resume_command=resume_command,
        batch_key="teacher.pretrain.batch_size",
        lr_key=f"teacher.pretrain.{lr}",
    )


def _content_hash(recipe: Recipe, source: ImageSource, size: tuple[int, int]) -> str:
    """Hash of everything that a pre-trained teacher depends on."""
    parts = {
        "name": recipe.teacher.name,
        "args": recipe.teacher.args,
        "pretrain": recipe.teacher.pretrain.model_dump(),
        "photos": source.fingerprint,
        "crop_scale": recipe.data.crop_scale,
        "size": size,
        "seed": recipe.seed,
        "precision": resolve_precision(recipe.train.precision),
    }
    if recipe.teacher.pretrain.label_epochs:
        parts["labels"] = source.labels.tolist()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
