"""The student: a sparse convolutional encoder that sees visible patches, and a light decoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hgkd_edge.models.decoder import Decoder
from hgkd_edge.sparse import SparseEncoder

__all__ = ["Student", "token_stride"]


class Student(nn.Module):
    """Mask -> sparse encoder -> decoder -> one predicted vector per teacher token.

    Args:
        encoder: Sparse encoder whose finest map lies on the teacher's token grid.
        teacher_width: Channels D of the teacher's tokens.
        decoder_width: Channels of the decoder.
        pixels: Also predict each token's pixels.
    """

    def __init__(
        self,
        encoder: SparseEncoder,
        *,
        teacher_width: int,
        decoder_width: int,
        pixels: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = Decoder(self.encoder.channels, width=decoder_width)
        self.head = nn.Conv2d(decoder_width, teacher_width, kernel_size=1)
        side = self.encoder.reductions[0]
        self.pixel_head = (
            nn.Conv2d(decoder_width, side * side * 3, kernel_size=1) if pixels else None
        )

    def forward(
        self, images: Tensor, visible: Tensor, per_image: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Predict the teacher's tokens over the whole image.

        Args:
            images: float [B, 3, H, W], normalised.
            visible: bool [B, h, w], True = visible.
            per_image: Number of visible patches in every image, if it is the same and known.

        Returns:
            Tokens float [B, N, D], and pixels float [B, N, side*side*3] or None.
        """
        # [B, width, H/s, W/s]
        maps = self.encoder(images, visible, per_image, each=self.decoder.lateral)
        decoded = self.decoder(maps, visible)
        tokens = self.head(decoded).flatten(2).transpose(1, 2)
        if self.pixel_head is None:
            return tokens, None
        return tokens, self.pixel_head(decoded).flatten(2).transpose(1, 2)


def token_stride(reductions: Sequence[int], teacher_patch: int) -> int:
    """The student's stride nearest to the teacher's patch: the grid on which the two meet."""
    return min(reductions, key=lambda r: max(r / teacher_patch, teacher_patch / r))
