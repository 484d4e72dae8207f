"""Runs a timm VisionTransformer on masked images: tokens dropped, or replaced by one token."""

from __future__ import annotations

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

__all__ = ["encode_masked", "encode_visible", "patches_of"]


def encode_visible(vit: VisionTransformer, images: Tensor, keep: Tensor) -> Tensor:
    """Run a ViT on the tokens named by `keep`, class and register tokens included.

    Encoder of the masked autoencoder (He et al. 2021, arXiv 2111.06377, section 3). Position is
    added before tokens are dropped, so that each remaining token keeps its position.

    Args:
        vit: The Transformer.
        images: float [B, 3, H, W].
        keep: int64 [B, N_keep], indices into the row-major token grid.

    Returns:
        float [B, N_prefix + N_keep, D], after the final norm, prefix tokens first.
    """
    tokens = vit._pos_embed(vit.patch_embed(images))  # [B, N_prefix + N, D]
    prefix, patches = tokens.split(
        [vit.num_prefix_tokens, tokens.shape[1] - vit.num_prefix_tokens], dim=1
    )
    patches = patches.gather(1, keep[..., None].expand(-1, -1, patches.shape[-1]))
    return _through_blocks(vit, torch.cat([prefix, patches], dim=1))


def encode_masked(
    vit: VisionTransformer,
    images: Tensor,
    masked: Tensor | None = None,
    mask_token: Tensor | None = None,
) -> Tensor:
    """Run a ViT on all tokens, with masked tokens replaced, as in BEiT and iBOT.

    Args:
        vit: The Transformer.
        images: float [B, 3, H, W], of any size that its patches divide; position embeddings are
            resampled to other grids.
        masked: bool [B, N] on the row-major token grid; None for whole images.
        mask_token: float [1, 1, D], replaces masked tokens before position is added.

    Returns:
        float [B, N_prefix + N, D], after the final norm, prefix tokens first.
    """
    maps = vit.patch_embed.proj(images)  # [B, D, h, w]
    tokens = vit.patch_embed.norm(maps.flatten(2).transpose(1, 2))  # [B, N, D]
    if masked is not None and mask_token is not None:
        tokens = torch.where(masked[..., None], mask_token.to(tokens.dtype), tokens)
    prefix = [
        each.expand(len(images), -1, -1)
        for each in (vit.cls_token, vit.reg_token)
        if each is not None
    ]
    position = _position(vit, (maps.shape[2], maps.shape[3]))
    if position is not None and vit.no_embed_class:
        tokens = tokens + position
    tokens = torch.cat([*prefix, tokens], dim=1)
    if position is not None and not vit.no_embed_class:
        tokens = tokens + position
    return _through_blocks(vit, vit.pos_drop(tokens))


def _position(vit: VisionTransformer, grid: tuple[int, int]) -> Tensor | None:
    """Position embeddings for a grid of tokens, [1, N_prefix + N, D] or [1, N, D]."""
    if vit.pos_embed is None or grid == tuple(vit.patch_embed.grid_size):
        return vit.pos_embed
    return resample_abs_pos_embed(
        vit.pos_embed,
        new_size=list(grid),
        old_size=list(vit.patch_embed.grid_size),
        num_prefix_tokens=0 if vit.no_embed_class else vit.num_prefix_tokens,
    )


def _through_blocks(vit: VisionTransformer, tokens: Tensor) -> Tensor:
    tokens = vit.norm_pre(tokens)
    for block in vit.blocks:
        tokens = block(tokens)
    return vit.norm(tokens)


def patches_of(images: Tensor, side: int) -> Tensor:
    """Cut images into patches: [B, 3, h*side, w*side] -> [B, h*w, side*side*3]."""
    b, c, height, width = images.shape
    h, w = height // side, width // side
    return images.view(b, c, h, side, w, side).permute(0, 2, 4, 3, 5, 1).reshape(b, h * w, -1)
