"""The light UNet decoder: fills masked sites with learned tokens, upsamples to the token grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Decoder", "upsample_mask"]


class Decoder(nn.Module):
    """From a sparse encoder's maps to a prediction at every token of the teacher's grid.

    As in SparK (Tian et al. 2023, arXiv 2301.03580, section 3.2), the masked sites of every scale
    are filled with that scale's mask token. Then each level is upsampled by two, added to the next
    finer level and refined by two 3x3 convolutions:

        stride 32  [B, C4, 2, 2]  -1x1-fill- x ──┐ up
        stride 16  [B, C3, 4, 4]  -1x1-fill- + ──┴─ refine ──┐ up
        stride  8  [B, C2, 8, 8]  -1x1-fill- + ──────────────┴─ refine -> [B, width, 8, 8]

    A single map is refined, too: without it, every masked site would get the same prediction.

    SparK fills first. A 1x1 convolution looks at one site at a time, so filling with the convolved
    token is equivalent, and the convolution can run in the encoder, on visible sites only
    (`encoder(images, visible, each=decoder.lateral)`).

    Args:
        channels: Channels of the encoder's maps, finest first.
        width: Channels of every decoder level.

    Attributes:
        lateral: The 1x1 convolution of each encoder map, finest first.
    """

    def __init__(self, channels: Sequence[int], *, width: int) -> None:
        super().__init__()
        self.mask_tokens = nn.ParameterList(torch.zeros(1, c, 1, 1) for c in channels)
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, kernel_size=1) for c in channels)
        levels = len(channels) - 1
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(width, width, kernel_size=4, stride=2, padding=1)
            for _ in range(levels)
        )
        self.refine = nn.ModuleList(_refine(width) for _ in range(max(1, levels)))
        for token in self.mask_tokens:
            nn.init.trunc_normal_(token, std=0.02)

    def forward(self, maps: Sequence[Tensor], visible: Tensor) -> Tensor:
        """Decode.

        Args:
            maps: Encoder maps after `lateral`, finest first, float [B, width, H/s, W/s]; values at
                masked sites are ignored.
            visible: bool [B, h, w], True = visible.

        Returns:
            float [B, width, H/s, W/s] at the finest given stride s.
        """
        levels = [
            self._fill(level, lateral(token), visible)
            for level, token, lateral in zip(maps, self.mask_tokens, self.lateral, strict=True)
        ]
        x = levels.pop()  # [B, width, h, w], the deepest
        if not self.up:
            return self.refine[0](x)
        for up, refine in zip(self.up, self.refine, strict=True):
            x = refine(up(x) + levels.pop())
        return x

    @staticmethod
    def _fill(level: Tensor, token: Tensor, visible: Tensor) -> Tensor:
        mask = upsample_mask(visible, level.shape[-2:])[:, None]  # [B, 1, H/s, W/s]
        return torch.where(mask, level, token.to(level.dtype))


def upsample_mask(visible: Tensor, size: Sequence[int]) -> Tensor:
    """bool [B, h, w] -> bool [B, *size], each patch repeated; `size` is a multiple of h and w."""
    rows, columns = size[0] // visible.shape[1], size[1] // visible.shape[2]
    return visible.repeat_interleave(rows, dim=1).repeat_interleave(columns, dim=2)


def _refine(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU6(inplace=True),
        nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(width),
    )
