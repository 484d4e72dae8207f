"""A recipe made into networks: everything that can be checked before a photo is read is here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hgkd_edge.data.masks import mask_grid, visible_count
from hgkd_edge.errors import RecipeError
from hgkd_edge.models.backbone import BackboneSpec, create_features
from hgkd_edge.models.student import token_stride
from hgkd_edge.models.teacher import create_vit, teacher_patch
from hgkd_edge.recipe import Recipe
from hgkd_edge.sparse import SparseEncoder, sparsify

__all__ = ["Parts", "build"]


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
    torch.manual_seed(recipe.seed)  # one to pre-train starts the same whatever the student is
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
