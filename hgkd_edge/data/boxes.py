"""Boxes of many photos, padded batch by batch: one crowded photo does not make all others large."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["MAX_BOXES", "NO_BOX", "BoxLabels"]

NO_BOX = -1  # class of the rows that fill up a photo's boxes
MAX_BOXES = 4096  # of one photo: a detector compares each with thousands of points


class BoxLabels:
    """Stands in for the tensor float32 [n, M, 5] of photos with at most M boxes.

    A row is class, x1, y1, x2, y2 in canvas pixels. Photos with fewer boxes than others of their
    batch are filled up with rows of class `NO_BOX`.

    `ImageSource.labels` is typed as the tensor: whoever takes batches need not tell them apart.

    Args:
        photos: Each photo's boxes, float32 [m, 5].
    """

    ndim = 3

    def __init__(self, photos: Sequence[np.ndarray]) -> None:
        self.photos = photos

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: Any) -> Tensor:
        """Boxes of photos int64 [B], float32 [B, M of these, 5]; by other indices, as a tensor."""
        if isinstance(index, Tensor) and index.dtype == torch.int64 and index.ndim == 1:
            return self._padded([self.photos[i] for i in index.tolist()])
        return self._padded(self.photos)[index]

    def split(self, size: int) -> Iterator[Tensor]:
        """All photos in order, float32 [at most size, M of these, 5]."""
        return (self[indices] for indices in torch.arange(len(self)).split(size))

    def __iter__(self) -> Iterator[Tensor]:
        """Boxes of each photo, float32 [m, 5]."""
        return map(torch.from_numpy, self.photos)

    def select(self, indices: Tensor) -> BoxLabels:
        """Some of the photos, int64 [m]."""
        return BoxLabels([self.photos[i] for i in indices.tolist()])

    @staticmethod
    def _padded(photos: Sequence[np.ndarray]) -> Tensor:
        most = max((len(boxes) for boxes in photos), default=0)
        padded = torch.full((len(photos), max(1, most), 5), float(NO_BOX))
        for row, boxes in zip(padded, photos, strict=True):
            row[: len(boxes)] = torch.from_numpy(boxes)
        return padded
