"""Boxes of many images, padded per batch: one crowded image does not enlarge all others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["MAX_BOXES", "NO_BOX", "BoxLabels"]

NO_BOX = -1  # class of padding rows
MAX_BOXES = 4096  # of one image: a detector compares each box with thousands of points


class BoxLabels:
    """Replaces the tensor float32 [n, M, 5] of images with at most M boxes.

    A row is class, x1, y1, x2, y2 in canvas pixels. Images with fewer boxes than others in their
    batch are padded with rows of class `NO_BOX`.

    `ImageSource.labels` is typed as the tensor, so code that takes batches need not distinguish
    them.

    Args:
        photos: Each image's boxes, float32 [m, 5].
    """

    ndim = 3

    def __init__(self, photos: Sequence[np.ndarray]) -> None:
        self.photos = photos

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: Any) -> Tensor:
        """For images int64 [B]: float32 [B, M of these, 5]. Other indices work as on a tensor."""
        if isinstance(index, Tensor) and index.dtype == torch.int64 and index.ndim == 1:
            return self._padded([self.photos[i] for i in index.tolist()])
        return self._padded(self.photos)[index]

    def split(self, size: int) -> Iterator[Tensor]:
        """All images in order, float32 [at most size, M of these, 5]."""
        return (self[indices] for indices in torch.arange(len(self)).split(size))

    def __iter__(self) -> Iterator[Tensor]:
        """Boxes of each image, float32 [m, 5]."""
        return map(torch.from_numpy, self.photos)

    def select(self, indices: Tensor) -> BoxLabels:
        """The boxes of selected images, int64 [m]."""
        return BoxLabels([self.photos[i] for i in indices.tolist()])

    @staticmethod
    def _padded(photos: Sequence[np.ndarray]) -> Tensor:
        most = max((len(boxes) for boxes in photos), default=0)
        padded = torch.full((len(photos), max(1, most), 5), float(NO_BOX))
        for row, boxes in zip(padded, photos, strict=True):
            row[: len(boxes)] = torch.from_numpy(boxes)
        return padded
