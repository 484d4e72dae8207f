"""Masked autoencoder: pre-trains a teacher from unlabeled images.

He et al. 2021, arXiv 2111.06377: the encoder sees a quarter of the patches, a light decoder
predicts the pixels of the rest, normalized within each patch.
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from hgkd_edge.models.vit import encode_visible, patches_of

__all__ = ["LabelTuner", "MaskedAutoencoder", "visible_tokens"]


class MaskedAutoencoder(nn.Module):
    """A ViT encoder with a light decoder over all tokens.

    Args:
        encoder: The Transformer to pre-train; `num_classes=0`.
        mask_ratio: Share of tokens that the encoder does not see.
        decoder_width: Width of the decoder's tokens.
        decoder_depth: Number of decoder blocks.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        mask_ratio: float,
        decoder_width: int,
        decoder_depth: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.mask_ratio = mask_ratio
        self.patch_side = encoder.patch_embed.patch_size[0]
        self.num_tokens = encoder.patch_embed.num_patches
        self.embed = nn.Linear(encoder.embed_dim, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.position = nn.Parameter(torch.zeros(1, self.num_tokens, decoder_width))
        self.blocks = nn.Sequential(
            *(Block(decoder_width, num_heads=decoder_width // 32) for _ in range(decoder_depth))
        )
        self.norm = nn.LayerNorm(decoder_width)
        self.head = nn.Linear(decoder_width, self.patch_side**2 * 3)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Mask, encode, decode, compare.

        Args:
            images: float [B, 3, H, W], normalized.
            noise: float [B, N], uniform; the lowest tokens stay visible.
        """
        shuffle = noise.argsort(dim=1)  # [B, N], visible tokens first
        visible = shuffle[:, : visible_tokens(self.num_tokens, self.mask_ratio)]
        encoded = encode_visible(self.encoder, images, visible)
        predicted = self._decode(encoded[:, self.encoder.num_prefix_tokens :], shuffle)
        return {"loss": self._loss(predicted, images, masked=shuffle[:, visible.shape[1] :])}

    def _decode(self, encoded: Tensor, shuffle: Tensor) -> Tensor:
        """Visible tokens [B, N_visible, D] -> pixels of every patch [B, N, side*side*3]."""
        tokens = self.embed(encoded)  # [B, N_visible, D_decoder]
        missing = self.num_tokens - tokens.shape[1]
        fill = self.mask_token.expand(len(tokens), missing, -1).to(tokens.dtype)
        tokens = torch.cat([tokens, fill], dim=1)  # in shuffled order
        unshuffle = shuffle.argsort(dim=1)[..., None].expand_as(tokens)
        tokens = tokens.gather(1, unshuffle) + self.position
        return self.head(self.norm(self.blocks(tokens)))

    def _loss(self, predicted: Tensor, images: Tensor, masked: Tensor) -> Tensor:
        """Mean squared error on masked patches, each normalized to zero mean and unit variance."""
        target = patches_of(images, self.patch_side)  # [B, N, side*side*3]
        target = F.layer_norm(target, target.shape[-1:])
        index = masked[..., None].expand(-1, -1, target.shape[-1])
        return F.mse_loss(predicted.gather(1, index).float(), target.gather(1, index))


def visible_tokens(total: int, mask_ratio: float) -> int:
    """Number of tokens that stay visible."""
    return round(total * (1 - mask_ratio))


class LabelTuner(nn.Module):
    """Intermediate fine-tuning: a linear classifier on the mean of the patch tokens.

    The mean, not the class token, because the student will predict the patch tokens.

    Args:
        encoder: The pre-trained Transformer.
        num_classes: Number of labels.
        smoothing: Label smoothing.
    """

    def __init__(
        self, encoder: VisionTransformer, *, num_classes: int, smoothing: float = 0.1
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.smoothing = smoothing
        self.head = nn.Linear(encoder.embed_dim, num_classes)

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Cross-entropy and accuracy for images float [B, 3, H, W] and labels int64 [B]."""
        tokens = self.encoder.forward_features(images)[:, self.encoder.num_prefix_tokens :]
        logits = self.head(tokens.mean(dim=1)).float()  # [B, classes]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
        return {"loss": loss, "accuracy": (logits.argmax(1) == labels).float().mean()}
