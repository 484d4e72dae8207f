"""`teacher.weights: pretrain`: trains the teacher on the recipe's images, and caches it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from hgkd_edge.console import console
from hgkd_edge.data.augment import (
    CROP_DRAWS,
    DISTORT_DRAWS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    distort,
    normalize,
    random_view,
)
from hgkd_edge.data.sources import ImageSource
from hgkd_edge.data.to_device import to_device
from hgkd_edge.distillation.masks import BLOCK_DRAWS, block_masks
from hgkd_edge.distillation.target_cache import waiting
from hgkd_edge.distillation.teacher_network import require_plain_vit
from hgkd_edge.distillation.teacher_weights import save_vit_weights
from hgkd_edge.engine import Draws, Inputs, Training, Workplace, resolve_precision, train
from hgkd_edge.errors import DataError
from hgkd_edge.files import atomic_write, cache_dir, locked, write_json
from hgkd_edge.models.ibot import OnlineTokenizer
from hgkd_edge.models.mae import LabelTuner, MaskedAutoencoder
from hgkd_edge.pretrain_settings import IbotConfig, PretrainConfig
from hgkd_edge.processes import count, on_main, on_main_for_long
from hgkd_edge.recipe import Recipe
from hgkd_edge.recipe_sections import DataConfig, TrainConfig

__all__ = ["pretrain_teacher", "pretrained_file", "pretraining"]


class MaskedAutoencoding(Training):
    """Training: reconstruct masked patches of augmented images."""

    def __init__(self, model: MaskedAutoencoder, recipe: Recipe, size: tuple[int, int]) -> None:
        self.model: nn.Module = model
        self.num_tokens = model.num_tokens
        self.size, self.data = size, recipe.data

    def inputs(self, images: Tensor, labels: Tensor, draws: Draws) -> Iterator[Inputs]:
        view = _view(images, draws, self.size, self.data)
        yield view, draws.uniform(len(images), self.num_tokens)


class SelfDistillation(Training):
    """Training: predict the output of the network's average from views that are masked or small.

    One of the two global views is masked, so every image has masked patches.
    """

    def __init__(
        self, model: OnlineTokenizer, config: IbotConfig, size: tuple[int, int], *, flip: bool
    ) -> None:
        self.model: nn.Module = model
        self.config, self.size, self.flip = config, size, flip
        encoder = model.student.encoder
        self.grid: tuple[int, int] = encoder.patch_embed.grid_size
        side = encoder.patch_embed.patch_size[0]
        # Half a global view's side, in whole patches.
        self.local_size = max(2, self.grid[0] // 2) * side, max(2, self.grid[1] // 2) * side

    def inputs(self, images: Tensor, labels: Tensor, draws: Draws) -> Iterator[Inputs]:
        config, count = self.config, len(images)
        views = [self._view(images, draws, self.size, config.crop_scale) for _ in range(2)]
        blocks = block_masks(draws.on_cpu(count, BLOCK_DRAWS), self.grid, config.mask_ratio)
        visible = torch.ones(count, 2, *self.grid, dtype=torch.bool)
        visible[torch.arange(count), (draws.on_cpu(count, 1)[:, 0] < 0.5).long()] = blocks
        local_views = [
            self._view(images, draws, self.local_size, config.local_crop_scale)
            for _ in range(config.local_crops)
        ]
        none = views[0].new_zeros(count, 0, 3, *self.local_size)
        yield (
            torch.stack(views, dim=1),
            to_device(visible, images.device),
            torch.stack(local_views, dim=1) if local_views else none,
            draws.progress,
        )

    def _view(
        self, images: Tensor, draws: Draws, size: tuple[int, int], scale: tuple[float, float]
    ) -> Tensor:
        numbers = draws.on_cpu(len(images), CROP_DRAWS)
        view = random_view(images, numbers, size=size, scale=scale, flip=self.flip)
        view = distort(view, draws.uniform(len(images), DISTORT_DRAWS))
        return normalize(view, IMAGENET_MEAN, IMAGENET_STD)


class LabelTuning(Training):
    """Training: classify augmented images by the mean patch token."""

    def __init__(self, model: LabelTuner, recipe: Recipe, size: tuple[int, int]) -> None:
        self.model: nn.Module = model
        self.size, self.data = size, recipe.data

    def inputs(self, images: Tensor, labels: Tensor, draws: Draws) -> Iterator[Inputs]:
        yield _view(images, draws, self.size, self.data), labels


def pretrain_teacher(
    vit: nn.Module,
    source: ImageSource,
    recipe: Recipe,
    *,
    size: tuple[int, int],
    resume_command: str = "run the same command again",
) -> Path:
    """Pre-train a ViT on the training images, or load the result from the cache.

    If a call is interrupted, the next one resumes from its checkpoint.

    Args:
        vit: The untrained Transformer; trained in place.
        source: Training images.
        recipe: The whole recipe; its `teacher.pretrain` holds the settings.
        size: Height and width of the teacher's input in pixels.
        resume_command: The command that resumes an interrupted training.

    Returns:
        The teacher's weights, `model.safetensors` in the cache, under a hash of everything that
        determines them: images, architecture, settings, seed.

    Raises:
        RecipeError: The teacher is not a plain timm VisionTransformer.
        DataError: Label tuning is requested for unlabeled images, or iBOT on a single one.
    """
    config = recipe.teacher.pretrain
    if config.label_epochs and not source.one_class:
        raise DataError("teacher.pretrain.label_epochs: the images do not have one class each")
    _require_several(config, len(source))
    weights = pretrained_file(recipe, source, size)
    with contextlib.ExitStack() as held:
        what = "teacher: waiting for another run that pre-trains the same one"

        def hold(alive: Callable[[], None]) -> None:
            held.enter_context(locked(weights.parent, waiting(what, weights.parent, alive)))

        on_main_for_long(hold)
        if on_main(weights.is_file):
            console.print(f"teacher: found pre-trained in {weights.parent}")
        else:
            _pretrain(vit, source, recipe, size, weights, resume_command)
    return weights


def pretrained_file(recipe: Recipe, source: ImageSource, size: tuple[int, int]) -> Path:
    """The weights that `pretrain_teacher` leaves, or has left."""
    return cache_dir() / "teachers" / _content_hash(recipe, source, size) / "model.safetensors"


def _pretrain(
    vit: nn.Module,
    source: ImageSource,
    recipe: Recipe,
    size: tuple[int, int],
    weights: Path,
    resume_command: str,
) -> None:
    config, folder = recipe.teacher.pretrain, weights.parent
    torch.manual_seed(recipe.seed)
    task, schedule = pretraining(vit, recipe, size)
    trained = train(
        task,
        source,
        schedule,
        seed=recipe.seed,
        place=_workplace(folder, config.objective, "lr", resume_command),
        label="pre-training the teacher",
        resume=True,
    )
    average = {"mae": "encoder", "ibot": "teacher.encoder"}[config.objective]
    encoder = trained.get_submodule(average).requires_grad_(True)
    if config.label_epochs:
        place = _workplace(folder, "labels", "label_lr", resume_command)
        encoder = _tune_with_labels(encoder, source, recipe, size, place)
    on_main(lambda: _save(encoder, weights, recipe, source, size))


def pretraining(
    vit: nn.Module, recipe: Recipe, size: tuple[int, int]
) -> tuple[Training, TrainConfig]:
    """The training without labels, and its settings; changes the ViT in place."""
    config = recipe.teacher.pretrain
    schedule = _schedule(config, recipe.train, epochs=config.epochs, lr=config.lr)
    if config.objective == "ibot":  # the model holds its own average; clipping as in the paper
        schedule = schedule.model_copy(update={"ema": 0.0, "clip_grad": 3.0})
    return _task(require_plain_vit(vit, recipe.teacher.name), recipe, size), schedule


def _require_several(config: PretrainConfig, photos: int) -> None:
    """Check that iBOT has several images to compare, in every process.

    Raises:
        DataError: There are too few images.
    """
    if config.objective == "ibot" and min(config.batch_size, photos) < 2 * count():
        raise DataError(
            f"teacher.pretrain.objective 'ibot' compares images: a batch of {config.batch_size} "
            f"out of {photos} is less than 2 for each of {count()} processes",
            hint="use more images or a larger teacher.pretrain.batch_size, or objective mae",
        )


def _task(vit: VisionTransformer, recipe: Recipe, size: tuple[int, int]) -> Training:
    """The objective for a teacher that learns from unlabeled images."""
    config = recipe.teacher.pretrain
    if config.objective == "ibot":
        model = OnlineTokenizer(
            vit,
            prototypes=config.ibot.prototypes,
            shared_head=config.ibot.shared_head,
            momentum=config.ibot.momentum,
            temperature=config.ibot.temperature,
        )
        return SelfDistillation(model, config.ibot, size, flip=recipe.data.flip)
    mae = MaskedAutoencoder(
        vit,
        mask_ratio=config.mask_ratio,
        decoder_width=config.decoder_width,
        decoder_depth=config.decoder_depth,
    )
    return MaskedAutoencoding(mae, recipe, size)


def _save(
    encoder: nn.Module, weights: Path, recipe: Recipe, source: ImageSource, size: tuple[int, int]
) -> None:
    with atomic_write(weights) as temporary:
        save_vit_weights(
            encoder,
            temporary,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            class_token=recipe.teacher.pretrain.objective == "ibot",
        )
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
    torch.manual_seed(recipe.seed)  # the same classifier, also after a restart
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


def _view(images: Tensor, draws: Draws, size: tuple[int, int], data: DataConfig) -> Tensor:
    numbers = draws.on_cpu(len(images), CROP_DRAWS)
    view = random_view(images, numbers, size=size, scale=data.crop_scale, flip=data.flip)
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
    """Hash of everything that determines a pre-trained teacher."""
    parts = {
        "name": recipe.teacher.name,
        "args": recipe.teacher.args,
        "pretrain": recipe.teacher.pretrain.effective,
        "photos": source.fingerprint,
        "crop_scale": recipe.data.crop_scale,
        "flip": recipe.data.flip,
        "size": size,
        "seed": recipe.seed,
        "precision": resolve_precision(recipe.train.precision),
    }
    if recipe.data.size != size:  # the student's size, to which images are decoded
        parts["image_size"] = recipe.data.size
    if recipe.teacher.pretrain.label_epochs:
        parts["labels"] = source.labels.tolist()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
