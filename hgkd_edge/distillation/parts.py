"""Builds the networks of a recipe, with all checks that are possible before reading an image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from hgkd_edge.distillation.masks import mask_grid, visible_count
from hgkd_edge.distillation.teacher_network import create_vit, teacher_patch
from hgkd_edge.engine.setup import check_machine
from hgkd_edge.errors import RecipeError
from hgkd_edge.models.backbone import (
    BackboneSpec,
    create_features,
    fill_features,
    freeze_unused,
    require_plain_form,
)
from hgkd_edge.models.ibot import require_lightly
from hgkd_edge.models.mae import visible_tokens
from hgkd_edge.models.meta import on_meta
from hgkd_edge.models.student import token_stride
from hgkd_edge.models.student_weights import initial_weights, published_student
from hgkd_edge.recipe import Recipe
from hgkd_edge.recipe_sections import StudentConfig
from hgkd_edge.sparse import SparseEncoder, sparsify

__all__ = ["Parts", "build"]


# Arguments of `timm.create_model` that are set here.
OWN_ARGS = frozenset(
    {
        "features_only",
        "global_pool",
        "in_chans",
        "num_classes",
        "out_indices",
        "output_stride",
        "pretrained",
    }
)


@dataclass(frozen=True)
class Parts:
    """The networks of a recipe, and the grids that they share."""

    encoder: SparseEncoder
    spec: BackboneSpec
    vit: nn.Module
    teacher_size: tuple[int, int]
    mask_grid: tuple[int, int]
    mask_patch: int
    token_grid: tuple[int, int]


def build(recipe: Recipe, *, download: bool = True) -> Parts:
    """Create both networks, and run all checks that are possible before any image is read.

    Args:
        recipe: Fully resolved.
        download: Prepare to train on this machine: load the hub's weights if the recipe asks for
            them, and refuse what this machine does not support. Without it, a recipe may be for
            another machine.

    Raises:
        RecipeError: The student is not convolutional, the mask patch does not divide the image,
            nothing stays visible or nothing would be learned, the teacher's grid cannot be matched,
            or this machine does not support the recipe.
        MissingPackageError: A package that the teacher's pre-training needs is not installed.
        ConversionError: A module of the student cannot run on visible patches only, or one of its
            weights has no counterpart in the plain timm model.
    """
    student, data, teacher = recipe.student, recipe.data, recipe.teacher
    if download:
        _check_machine(recipe)
    _refuse_own_args(student.args)
    for key, path in (("teacher.path", teacher.path), ("student.path", student.path)):
        if path is not None and not path.is_file():
            raise RecipeError(f"{key} = '{path}': no such file")
    with on_meta():  # only strides are needed, not weights
        patch = teacher_patch(create_vit(teacher))
        every = create_features(student.name, stem_stride=student.stem_stride, args=student.args)
    reductions = every.feature_info.reduction()  # type: ignore[union-attr,operator]
    mask_patch = _mask_patch(recipe, max(reductions))
    stride = token_stride(reductions, patch)
    tokens = _token_grid(data.size, stride)
    _check_pretraining(recipe, tokens)
    teacher_size = tokens[0] * patch, tokens[1] * patch
    torch.manual_seed(recipe.seed)  # same initial teacher for any student
    wanted = download and teacher.weights == "hub" and recipe.loss.feature_weight > 0
    vit = create_vit(teacher, size=teacher_size, pretrained=wanted)
    torch.manual_seed(recipe.seed)  # same initial student for any teacher
    encoder = _encoder(student, stride, download=download)
    config = getattr(every, "pretrained_cfg", {})
    spec = BackboneSpec(
        name=student.name,
        stem_stride=student.stem_stride,
        size=data.size,
        mean=tuple(config.get("mean", (0.485, 0.456, 0.406))),
        std=tuple(config.get("std", (0.229, 0.224, 0.225))),
        args=student.args,
    )
    grid = mask_grid(data.size, mask_patch)
    return Parts(encoder, spec, vit, teacher_size, grid, mask_patch, tokens)


def _mask_patch(recipe: Recipe, deepest: int) -> int:
    """Side in pixels of a patch that is masked or visible as a unit."""
    patch = deepest if recipe.mask.patch == "auto" else recipe.mask.patch
    if patch % deepest:
        raise RecipeError(
            f"mask.patch = {patch}: must be a multiple of the student's deepest stride {deepest}",
            hint="use auto",
        )
    _check_mask(recipe, mask_grid(recipe.data.size, patch), patch)
    return patch


def _token_grid(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Rows and columns of tokens, which are the sites of the student's map at this stride."""
    tokens = size[0] // stride, size[1] // stride
    if min(tokens) < 2:
        raise RecipeError(
            f"data.image_size {size}: the teacher's tokens would be {tokens[0]}x{tokens[1]}, "
            "too few to match",
            hint=f"use images of at least {2 * stride} px, or a smaller student.stem_stride",
        )
    return tokens


def _encoder(student: StudentConfig, stride: int, *, download: bool) -> SparseEncoder:
    """The student's sparse encoder with its initial weights."""
    features = create_features(
        student.name, stem_stride=student.stem_stride, args=student.args, min_stride=stride
    )
    require_plain_form(features, student.name, student.args)
    if student.path is not None:
        fill_features(features, initial_weights(student, student.path))
    elif student.weights == "hub" and download:
        fill_features(features, published_student(student).state_dict())
    encoder = sparsify(features, backend="tiles" if student.backend == "auto" else student.backend)
    freeze_unused(features)
    return encoder


def _check_machine(recipe: Recipe) -> None:
    check_machine(recipe.train)
    if recipe.teacher.weights == "pretrain" and recipe.teacher.pretrain.objective == "ibot":
        require_lightly()
    if recipe.student.backend == "spconv" and not torch.cuda.is_available():
        raise RecipeError(
            "student.backend = 'spconv': needs a GPU (on a CPU spconv has no backward pass)",
            hint="use auto",
        )


def _refuse_own_args(args: dict[str, object]) -> None:
    refused = sorted(args.keys() & OWN_ARGS)
    if refused:
        raise RecipeError(
            f"student.args.{refused[0]}: is set by hgkd-edge itself",
            hint="remove it; student.args is for the architecture, such as channels or depths",
        )


def _check_pretraining(recipe: Recipe, tokens: tuple[int, int]) -> None:
    """Check that masked autoencoding would mask some of the teacher's tokens, and not all."""
    teacher, total = recipe.teacher, tokens[0] * tokens[1]
    ratio = teacher.pretrain.mask_ratio
    wanted = teacher.weights == "pretrain" and teacher.pretrain.objective == "mae"
    masked = total - visible_tokens(total, ratio)
    if wanted and recipe.loss.feature_weight and masked in (0, total):
        raise RecipeError(
            f"teacher.pretrain.mask_ratio {ratio} masks {masked} of {tokens[0]}x{tokens[1]} tokens",
            hint="some must be masked and some visible: use another ratio or larger images",
        )


def _check_mask(recipe: Recipe, grid: tuple[int, int], patch: int) -> None:
    """Check that some patches stay visible and, unless masking is off, some are masked."""
    total = grid[0] * grid[1]
    for ratio in filter(None, recipe.mask.stages.values()):
        if total == 1:
            raise RecipeError(
                f"mask.patch {patch}: a single patch is the whole image, so none could be masked "
                "next to a visible one",
                hint="use a smaller mask.patch or student.stem_stride, or a larger data.image_size",
            )
        if visible_count(grid, ratio) == total:
            raise RecipeError(
                f"mask.ratio {ratio} masks none of {grid[0]}x{grid[1]} patches",
                hint=f"use at least {math.ceil(1000 / total) / 1000:g}, or 0 for no masks",
            )
