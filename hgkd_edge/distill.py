"""Distillation: photos and a frozen Transformer in, a run folder with a dense CNN out.

H-GKD (Heterogeneous Generative Knowledge Distillation with Masked Image Modeling, arXiv
2309.09571): the student sees the visible patches by sparse convolution and predicts, over the whole
image, what the teacher infers from it.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hgkd_edge import __version__
from hgkd_edge.console import console
from hgkd_edge.data.augment import center_view, normalize, random_view
from hgkd_edge.data.masks import mask_grid, random_masks, visible_count
from hgkd_edge.data.sources import ImageSource, open_splits
from hgkd_edge.engine import Draws, Workplace, resolve_precision, train
from hgkd_edge.errors import RecipeError
from hgkd_edge.models.backbone import BackboneSpec, EmbeddingNet, create_features, save_backbone
from hgkd_edge.models.decoder import upsample_mask
from hgkd_edge.models.student import Student, token_stride
from hgkd_edge.models.teacher import (
    BUNDLED_TEACHER,
    Teacher,
    create_vit,
    load_vit_weights,
    teacher_licence,
    teacher_patch,
)
from hgkd_edge.models.vit import patches_of
from hgkd_edge.pretrain import pretrain_teacher
from hgkd_edge.processes import from_all, is_main
from hgkd_edge.recipe import LossConfig, Recipe
from hgkd_edge.rundir import RunDir
from hgkd_edge.sparse import SparseEncoder, densify, sparsify

__all__ = ["Distillation", "Parts", "build", "distill", "recalibrate_batchnorm"]


@dataclass(frozen=True)
class Parts:
    """What a recipe is made into: the two networks and the grids on which they meet."""

    encoder: SparseEncoder
    spec: BackboneSpec
    vit: nn.Module
    teacher_size: tuple[int, int]
    mask_grid: tuple[int, int]
    mask_patch: int
    token_grid: tuple[int, int]


class Distillation(nn.Module):
    """The student and its loss: what the engine trains.

    Args:
        student: Predicts teacher tokens from visible patches.
        loss: How and where prediction and target are compared.
        mean: Per-channel mean that the student's images are normalised by.
        std: Per-channel standard deviation, likewise.
    """

    def __init__(
        self, student: Student, loss: LossConfig, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.student = student
        self.config = loss
        self.mean, self.std = mean, std

    def forward(self, images: Tensor, visible: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Loss of one batch.

        Args:
            images: float [B, 3, H, W] in [0, 1].
            visible: bool [B, h, w], True = visible.
            targets: float [B, N, D], the teacher's tokens.
        """
        predicted, pixels = self.student(normalize(images, self.mean, self.std), visible)
        where = self._where(visible, images)  # [B, N]
        chosen, wanted = predicted[where].float(), targets[where]  # [sites, D]
        cosine = F.cosine_similarity(chosen, wanted, dim=-1).mean()
        loss = self.config.feature_weight * self._distance(chosen, wanted, cosine)
        if pixels is not None:
            masked = ~self._tokens(visible, images)
            loss = loss + self.config.pixel_weight * self._pixel_loss(pixels, images, masked)
        return {"loss": loss, "cosine": cosine.detach()}

    def _distance(self, predicted: Tensor, wanted: Tensor, cosine: Tensor) -> Tensor:
        if self.config.target == "cosine":
            return 1 - cosine
        distance = F.smooth_l1_loss if self.config.target == "smooth_l1" else F.mse_loss
        return distance(predicted, wanted)

    def _where(self, visible: Tensor, images: Tensor) -> Tensor:
        tokens = self._tokens(visible, images)
        choices = {"visible": tokens, "masked": ~tokens, "all": torch.ones_like(tokens)}
        return choices[self.config.where]

    def _tokens(self, visible: Tensor, images: Tensor) -> Tensor:
        """Visibility of every token, bool [B, N]."""
        stride = self.student.encoder.reductions[0]
        grid = [side // stride for side in images.shape[-2:]]
        return upsample_mask(visible, grid).flatten(1)

    def _pixel_loss(self, pixels: Tensor, images: Tensor, masked: Tensor) -> Tensor:
        """SparK's target: pixels of masked patches, normalised within each patch."""
        target = patches_of(images, self.student.encoder.reductions[0])  # [B, N, side*side*3]
        target = F.layer_norm(target, target.shape[-1:])
        return F.mse_loss(pixels[masked].float(), target[masked])


class Distilling:
    """Task: predict the teacher's tokens; K masks of an image share one teacher pass."""

    layer_decay: float | None = None

    def __init__(self, model: Distillation, teacher: Teacher, parts: Parts, recipe: Recipe) -> None:
        self.model: nn.Module = model
        self.teacher, self.parts, self.recipe = teacher, parts, recipe
        self.updates_per_batch = recipe.mask.per_image

    def inputs(self, images: Tensor, labels: Tensor, draws: Draws) -> Iterator[tuple[Tensor, ...]]:
        data = self.recipe.data
        view = random_view(
            images, draws.uniform(len(images), 5), size=data.size, scale=data.crop_scale
        )
        whole = self.teacher(view) if self.recipe.teacher.view == "full" else None
        for _ in range(self.updates_per_batch):
            visible = draw_visible(draws, len(view), self.parts, self.recipe.mask.ratio)
            if whole is not None:
                yield view, visible, whole
            else:
                tokens = upsample_mask(visible, self.parts.token_grid).flatten(1)
                yield view, visible, self.teacher.forward_visible(view, tokens)


def draw_visible(draws: Draws, count: int, parts: Parts, ratio: float) -> Tensor:
    """Masks for `count` images on the grid of the student's deepest stride, bool [B, h, w]."""
    grid = parts.mask_grid
    visible = random_masks(draws.uniform(count, grid[0] * grid[1]), grid, ratio)
    return upsample_mask(visible, [side // parts.encoder.patch for side in parts.spec.size])


def build(recipe: Recipe, *, download: bool = True) -> Parts:
    """Make both networks, and check all that can be checked before any photo is read.

    Args:
        recipe: Fully resolved.
        download: Load the hub's weights where the recipe asks for them.

    Raises:
        RecipeError: The student is not convolutional, the mask patch does not divide the image,
            nothing stays visible, or the teacher's grid cannot be matched.
        ConversionError: A module of the student cannot run on visible patches only.
    """
    student, data = recipe.student, recipe.data
    torch.manual_seed(recipe.seed)
    patch = teacher_patch(create_vit(recipe.teacher))
    every = create_features(student.name, stem_stride=student.stem_stride, args=student.args)
    reductions = every.feature_info.reduction()  # type: ignore[union-attr,operator]
    deepest = max(reductions)
    mask_patch = deepest if recipe.mask.patch == "auto" else recipe.mask.patch
    if mask_patch % deepest:
        raise RecipeError(
            f"mask.patch = {mask_patch}: must be a multiple of the student's deepest stride "
            f"{deepest}",
            hint="use auto",
        )
    grid = mask_grid(data.size, mask_patch)
    visible_count(grid, recipe.mask.ratio)
    stride = token_stride(reductions, patch)
    tokens = data.size[0] // stride, data.size[1] // stride
    if min(tokens) < 2:
        raise RecipeError(
            f"data.image_size {data.size}: the teacher's tokens would be {tokens[0]}x{tokens[1]}, "
            "too few to match",
            hint=f"use images of at least {2 * stride} px, or a smaller student.stem_stride",
        )
    teacher_size = tokens[0] * patch, tokens[1] * patch
    vit = create_vit(
        recipe.teacher, size=teacher_size, pretrained=download and recipe.teacher.weights == "hub"
    )
    torch.manual_seed(recipe.seed)  # the student starts the same whatever the teacher drew
    features = create_features(
        student.name, stem_stride=student.stem_stride, args=student.args, min_stride=stride
    )
    backend = "tiles" if student.backend == "auto" else student.backend
    encoder = sparsify(features, backend=backend)
    config = getattr(every, "pretrained_cfg", {})
    spec = BackboneSpec(
        name=student.name,
        stem_stride=student.stem_stride,
        size=data.size,
        mean=tuple(config.get("mean", (0.485, 0.456, 0.406))),
        std=tuple(config.get("std", (0.229, 0.224, 0.225))),
        args=student.args,
    )
    return Parts(encoder, spec, vit, teacher_size, grid, mask_patch, tokens)


def distill(recipe: Recipe, run: RunDir, *, resume: bool = False) -> dict[str, Any]:
    """Run a whole distillation into a run folder.

    Args:
        recipe: Fully resolved.
        run: Its folder; the same one to resume.
        resume: Go on from the folder's checkpoint.

    Returns:
        What the manifest says of the result: steps, held-out cosine, skipped photos, artefacts.
        Nothing on processes beside the main one, whose part ends with the training.
    """
    parts = build(recipe)
    splits = open_splits(recipe.data)
    _report_photos(splits)
    source = splits["train"]
    if is_main():
        run.update_manifest(**_circumstances(recipe, splits))
    teacher, weights = _load_teacher(recipe, parts, source)
    if is_main():
        run.update_manifest(teacher=weights)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if recipe.teacher.standardize:
        _standardize(teacher.to(device), source, recipe)
    torch.manual_seed(recipe.seed)  # the decoder starts the same, teacher pre-trained now or before
    student = Student(
        parts.encoder,
        teacher_width=teacher.width,
        decoder_width=recipe.student.decoder_width,
        pixels=recipe.loss.pixel_weight > 0,
    )
    model = Distillation(student, recipe.loss, parts.spec.mean, parts.spec.std)
    task = Distilling(model, teacher.to(device), parts, recipe)
    place = Workplace(
        log_file=run.log_file,
        checkpoint_file=run.checkpoint_file,
        tracker_dir=run.path,
        resume_command=f"hgkd-edge distill {run.recipe_file} --run {run.path} --resume",
    )
    trained = train(
        task, source, recipe.train, seed=recipe.seed, place=place, label="distilling", resume=resume
    )
    assert isinstance(trained, Distillation)
    skipped = from_all(source.skipped)
    if not is_main():
        return {}
    _record_skipped(run, skipped)
    result = {"held_out": held_out_cosine(trained, teacher, parts, splits, recipe)}
    _save(trained, parts, source, run)
    run.update_manifest(result=result)
    return result


@torch.inference_mode()
def held_out_cosine(
    model: Distillation,
    teacher: Teacher,
    parts: Parts,
    splits: dict[str, ImageSource],
    recipe: Recipe,
) -> dict[str, float]:
    """Cosine similarity of predicted and true teacher tokens at masked sites of held-out photos.

    The trivial predictor beside it knows the training photos' mean token at every place.

    Returns:
        `student` and `mean_token` cosine, and `photos`; empty when nothing was held out.
    """
    held_out = held_out_split(splits)
    if held_out is None:
        return {}
    model.eval()
    device = next(model.parameters()).device
    sums, count = torch.zeros((), device=device), 0
    for images in splits["train"].images.split(256):
        targets = teacher(center_view(images.to(device), size=recipe.data.size))  # [B, N, D]
        sums, count = sums + targets.sum(dim=0), count + len(images)
    mean_token = sums / count  # [N, D]
    draws = Draws(torch.Generator().manual_seed(recipe.seed), 0, 1, device)
    ours, trivial = [], []
    for images in splits[held_out].images.split(256):
        view = center_view(images.to(device), size=recipe.data.size)
        targets = teacher(view)
        visible = draw_visible(draws, len(view), parts, recipe.mask.ratio)
        predicted, _ = model.student(normalize(view, model.mean, model.std), visible)
        masked = ~upsample_mask(visible, parts.token_grid).flatten(1)  # [B, N]
        ours.append(F.cosine_similarity(predicted, targets, dim=-1)[masked])
        trivial.append(F.cosine_similarity(mean_token.expand_as(targets), targets, dim=-1)[masked])
    return {
        "student": torch.cat(ours).mean().item(),
        "mean_token": torch.cat(trivial).mean().item(),
        "photos": len(splits[held_out]),
    }


def held_out_split(splits: dict[str, ImageSource]) -> str | None:
    """Name of the split kept from training, the most independent first."""
    return next((s for s in ("test", "val", "holdout") if len(splits.get(s, ()))), None)


@torch.no_grad()
def recalibrate_batchnorm(
    network: nn.Module, source: ImageSource, spec: BackboneSpec, *, batches: int = 8
) -> None:
    """Estimate BatchNorm's running statistics anew, on whole training photos.

    In training the encoder saw visible patches with zeros around them; whole photos give other
    means and variances at the patches' edges. Weights stay as they are.

    Args:
        network: Takes images float [B, 3, H, W]; changed in place.
        source: Training photos; the first `batches` x 128 of a fixed shuffle are used.
        spec: Image size and normalisation.
        batches: How many batches are averaged.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    device = next(network.parameters()).device
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    network.train()
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))
    for indices in order.split(128)[:batches]:
        view = center_view(source.images[indices].to(device), size=spec.size)
        network(normalize(view, spec.mean, spec.std))
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _standardize(teacher: Teacher, source: ImageSource, recipe: Recipe) -> None:
    """Let the teacher take its statistics from at most 1,024 training photos of a fixed shuffle."""
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:1024]
    device = next(teacher.parameters()).device
    teacher.standardize(
        center_view(source.images[indices].to(device), size=recipe.data.size)
        for indices in order.split(128)
    )


def _save(model: Distillation, parts: Parts, source: ImageSource, run: RunDir) -> None:
    """Densify, set BatchNorm to whole photos, write the backbone and record it."""
    dense = densify(model.student.encoder)
    recalibrate_batchnorm(EmbeddingNet(dense, parts.spec), source, parts.spec)
    save_backbone(dense, parts.spec, run.backbone_file)
    run.add_artefact(run.backbone_file, made_from=[run.checkpoint_file])


def _load_teacher(
    recipe: Recipe, parts: Parts, source: ImageSource
) -> tuple[Teacher, dict[str, Any]]:
    """The teacher with its weights, and what the manifest says of them."""
    config, vit = recipe.teacher, parts.vit
    origin: dict[str, Any] = {"name": config.name, "weights": config.weights}
    files = {"path": config.path, "bundled": BUNDLED_TEACHER}
    if config.weights == "pretrain":
        files["pretrain"] = pretrain_teacher(vit, source, recipe, size=parts.teacher_size)
    file = files.get(config.weights)
    if file is not None:
        load_vit_weights(vit, Path(file))
        origin["file"] = str(file)
    elif licence := teacher_licence(vit):
        origin["licence"] = licence
        console.print(f"teacher: {config.name}, licence {licence}")
        if "nc" in licence.lower().split("-"):
            console.print(
                f"[yellow]warning:[/] {licence} forbids commercial use of the teacher's weights"
            )
    teacher = Teacher(vit, layers=config.layers, size=parts.teacher_size)
    if recipe.train.compile:  # the sparse student gathers by the mask: nothing to compile there
        teacher.compile()
    return teacher, origin


def _report_photos(splits: dict[str, ImageSource]) -> None:
    counts = ", ".join(f"{len(source)} {name}" for name, source in splits.items())
    how = ", decoded as training goes" if splits["train"].streamed else ""
    console.print(f"photos: {counts}{how}")
    skipped = [item for source in splits.values() for item in source.skipped]
    if skipped:
        console.print(f"[yellow]skipped {len(skipped)} files that cannot be read:[/]")
        for name, reason in skipped[:5]:
            console.print(f"  {name}: {reason}", soft_wrap=True)
        if len(skipped) > 5:
            console.print(f"  ... and {len(skipped) - 5} more, all listed in manifest.json")


def _record_skipped(run: RunDir, skipped: list[list[tuple[str, str]]]) -> None:
    """Add the training photos that were met in training and could not be read, by any process."""
    data = run.manifest()["data"]
    known = [tuple(entry) for entry in data["train"]["skipped"]]
    found = sorted({*known, *(entry for entries in skipped for entry in entries)})
    if len(found) > len(known):
        console.print(f"[yellow]skipped {len(found)} files that cannot be read:[/] manifest.json")
        data["train"]["skipped"] = found
        run.update_manifest(data=data)


def _circumstances(recipe: Recipe, splits: dict[str, ImageSource]) -> dict[str, Any]:
    """Versions, revision, data and hardware, for the manifest."""
    import accelerate
    import timm
    import torchvision

    on_gpu = torch.cuda.is_available()
    return {
        "versions": {
            "hgkd_edge": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
            "accelerate": accelerate.__version__,
        },
        "git_revision": _git_revision(),
        "seed": recipe.seed,
        "precision": resolve_precision(recipe.train.precision),
        "hardware": {
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if on_gpu else None,
        },
        "data": {
            name: {
                "photos": len(source),
                "fingerprint": source.fingerprint,
                "skipped": source.skipped,
                "classes": source.classes,
            }
            for name, source in splits.items()
        },
    }


def _git_revision() -> str | None:
    """Revision of this package's own checkout; None when it is installed from a wheel."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
