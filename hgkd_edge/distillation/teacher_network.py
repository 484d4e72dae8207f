"""The teacher's network: creates and checks a timm Transformer of plain patch tokens."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from hgkd_edge.errors import RecipeError
from hgkd_edge.models.backbone import create_timm_model
from hgkd_edge.models.published_weights import create_published
from hgkd_edge.recipe_sections import TeacherConfig

__all__ = [
    "block_indices",
    "create_vit",
    "has_class_token",
    "require_plain_vit",
    "teacher_patch",
]


def create_vit(
    config: TeacherConfig, *, size: tuple[int, int] | None = None, pretrained: bool = False
) -> nn.Module:
    """The teacher's network.

    Args:
        config: The recipe's `teacher` section.
        size: Height and width of its input in pixels; None keeps the published size.
        pretrained: Load the hub's weights.

    Raises:
        RecipeError: The model is unknown to timm, or not a Transformer of plain patch tokens.
    """
    own: dict[str, Any] = {"num_classes": 0}
    if size is not None:
        own["img_size"] = size
    key, name, args = "teacher.name", config.name, config.args
    if pretrained:
        asked, instead = "teacher.weights = 'hub'", "teacher.weights 'path' (a file) or 'pretrain'"
        vit = create_published(key, name, args, asked=asked, instead=instead, **own)
    else:
        vit = create_timm_model(key, name, args, **own)
    parts = ("patch_embed", "forward_intermediates", "blocks", "num_prefix_tokens")
    if not (all(hasattr(vit, part) for part in parts) and _has_square_patches(vit)):
        raise RecipeError(
            f"teacher.name = '{config.name}': is not a Vision Transformer of plain patch tokens",
            hint="use a ViT, BEiT, DINOv2, EVA or CLIP image tower of timm",
        )
    if config.view == "visible" and not isinstance(vit, VisionTransformer):
        raise RecipeError(
            f"teacher.view = 'visible': '{config.name}' cannot run on a part of its tokens",
            hint="use view 'full', or a plain ViT such as vit_base_patch16_224.mae",
        )
    if config.weights == "pretrain":
        plain = require_plain_vit(vit, config.name)
        if config.pretrain.objective == "ibot" and plain.cls_token is None:
            raise RecipeError(
                f"teacher.name = '{config.name}': has no class token, which iBOT learns from",
                hint="set teacher.args.class_token to true, or teacher.pretrain.objective to mae",
            )
    block_indices(vit, config.layers)
    return vit


def require_plain_vit(vit: nn.Module, name: str) -> VisionTransformer:
    """The same network, checked to be suitable for pre-training.

    Raises:
        RecipeError: The teacher is not a plain timm VisionTransformer.
    """
    if not isinstance(vit, VisionTransformer):
        raise RecipeError(
            f"teacher.name = '{name}': cannot be pre-trained here",
            hint="weights 'pretrain' takes timm's plain ViTs, such as vit_tiny_patch16_224",
        )
    return vit


def block_indices(vit: nn.Module, layers: str | list[int]) -> list[int]:
    """Indices of the blocks that `teacher.layers` names.

    Raises:
        RecipeError: The teacher has fewer blocks.
    """
    depth = len(vit.blocks)  # type: ignore[arg-type]
    indices = [depth - 1] if layers == "last" else [int(i) for i in layers]
    if not all(-depth <= i < depth for i in indices):
        raise RecipeError(
            f"teacher.layers = {layers}: the teacher has blocks 0 to {depth - 1}",
            hint=f"such as [{depth - 1}]",
        )
    return sorted({index % depth for index in indices})  # the order in which timm returns them


def has_class_token(vit: nn.Module) -> bool:
    """Whether the first prefix token is a class token that was trained to stand for the image.

    It was not where timm normalizes the mean of the patch tokens instead (`fc_norm`, as in BEiTv2
    and EVA-02), nor in weights whose metadata deny it. Other prefix tokens are registers.
    """
    token = bool(vit.num_prefix_tokens) and getattr(vit, "cls_token", None) is not None
    averaged = not isinstance(getattr(vit, "fc_norm", nn.Identity()), nn.Identity)
    trained = getattr(vit, "pretrained_cfg", {}).get("class_token", True)
    return bool(token and trained and not averaged)


def _has_square_patches(vit: nn.Module) -> bool:
    sides = getattr(vit.patch_embed, "patch_size", None)
    return isinstance(sides, tuple) and len(set(sides)) == 1


def teacher_patch(vit: nn.Module) -> int:
    """Side in pixels of a teacher's patch."""
    return vit.patch_embed.patch_size[0]  # type: ignore[index,union-attr,return-value]
