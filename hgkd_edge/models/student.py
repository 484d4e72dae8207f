"""The student: a sparse convolutional encoder that sees visible patches, and a light decoder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hgkd_edge.models.decoder import Decoder
from hgkd_edge.sparse import SparseEncoder, densify

__all__ = ["Prediction", "Student", "dense_copy", "token_stride"]


class Prediction(NamedTuple):
    """A student's predictions for B images.

    Attributes:
        tokens: Prediction of the teacher's tokens, float [B, N, D].
        pixels: Pixels of each token, float [B, N, side*side*3], if predicted.
        embedding: Prediction of the teacher's embedding, float [B, D], if predicted.
    """

    tokens: Tensor
    pixels: Tensor | None = None
    embedding: Tensor | None = None


class Student(nn.Module):
    """Mask -> sparse encoder -> decoder -> one predicted vector per teacher token.

    Args:
        encoder: Sparse encoder whose finest map lies on the teacher's token grid.
        teacher_width: Channels D of the teacher's tokens.
        decoder_width: Channels of the decoder.
        head: `linear`, or `mlp`: a hidden layer of 2 * decoder_width channels with a GELU.
        pixels: Also predict each token's pixels.
        embedding: Also predict the teacher's embedding, with a linear layer on the mean of the
            deepest map's visible sites.
    """

    def __init__(
        self,
        encoder: SparseEncoder,
        *,
        teacher_width: int,
        decoder_width: int,
        head: str = "linear",
        pixels: bool = False,
        embedding: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = Decoder(self.encoder.channels, width=decoder_width)
        self.head = _head(decoder_width, teacher_width, kind=head)
        side = self.encoder.reductions[0]
        self.pixel_head = (
            nn.Conv2d(decoder_width, side * side * 3, kernel_size=1) if pixels else None
        )
        self.embedding_head = (
            nn.Linear(self.encoder.channels[-1], teacher_width) if embedding else None
        )

    def forward(self, images: Tensor, visible: Tensor, per_image: int | None = None) -> Prediction:
        """Predict the teacher's tokens over the whole image.

        Args:
            images: float [B, 3, H, W], normalized.
            visible: bool [B, h, w], True = visible.
            per_image: Number of visible patches in every image, if it is the same and known.
        """
        each, embedding = [*self.decoder.lateral], None
        if self.embedding_head is not None:  # the deepest map is also needed unprojected
            each[-1] = _WithInput(each[-1])
        maps = self.encoder(images, visible, per_image, each=each)  # [B, width, H/s, W/s]
        if self.embedding_head is not None:
            channels = self.embedding_head.in_features
            deepest = maps[-1][:, -channels:]  # [B, C4, h, w], zero at masked sites
            maps[-1] = maps[-1][:, :-channels]
            count = visible.flatten(1).sum(dim=1, keepdim=True)  # [B, 1]
            embedding = self.embedding_head(deepest.sum(dim=(2, 3)) / count)
        decoded = self.decoder(maps, visible)
        tokens = self.head(decoded).flatten(2).transpose(1, 2)
        pixels = None
        if self.pixel_head is not None:
            pixels = self.pixel_head(decoded).flatten(2).transpose(1, 2)
        return Prediction(tokens, pixels, embedding)


class _WithInput(nn.Module):
    """A module's output and its input map, concatenated along the channels."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, m: Tensor) -> Tensor:
        return torch.cat([self.module(m), m], dim=1)


def _head(width: int, out: int, *, kind: str) -> nn.Module:
    """From the decoder's map to the teacher's tokens, site by site."""
    if kind == "linear":
        return nn.Conv2d(width, out, kernel_size=1)
    return nn.Sequential(
        nn.Conv2d(width, 2 * width, kernel_size=1),
        nn.GELU(),
        nn.Conv2d(2 * width, out, kernel_size=1),
    )


def token_stride(reductions: Sequence[int], teacher_patch: int) -> int:
    """The student's stride nearest to the teacher's patch: the grid shared by both."""
    return min(reductions, key=lambda r: max(r / teacher_patch, teacher_patch / r))


def dense_copy(encoder: SparseEncoder) -> nn.Module:
    """The plain network with the encoder's weights, to be trained or evaluated further."""
    return densify(copy.deepcopy(encoder))
