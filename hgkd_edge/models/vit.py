"""Running a timm VisionTransformer on some of its tokens only, as masked autoencoders do."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

__all__ = ["encode_visible", "patches_of"]


def encode_visible(vit: VisionTransformer, images: Tensor, keep: Tensor) -> Tensor:
    """Run a ViT on the tokens named by `keep`, class and register tokens included.

    Masked autoencoder's encoder (He et al. 2021, arXiv 2111.06377, section 3): position is added
    before tokens are dropped, so that each remaining token still knows where it was.

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
    tokens = vit.norm_pre(torch.cat([prefix, patches], dim=1))
    for block in vit.blocks:
        tokens = block(tokens)
    return vit.norm(tokens)


def patches_of(images: Tensor, side: int) -> Tensor:
    """Cut images into patches: [B, 3, h*side, w*side] -> [B, h*w, side*side*3]."""
    b, c, height, width = images.shape
    h, w = height // side, width // side
    return images.view(b, c, h, side, w, side).permute(0, 2, 4, 3, 5, 1).reshape(b, h * w, -1)
