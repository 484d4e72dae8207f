"""Antialiased resizing to a known size, as in Pillow and torchvision, as matrix products.

Row i of the matrix for one axis holds the input weights of output pixel i: a filter around the
pixel's center, widened when shrinking, its weights summing to one. ONNX's own `Resize` cannot
antialias before opset 18, and TensorRT's cannot at all; a matrix product runs everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Axis", "cover", "letterbox", "resize_matrix"]


@dataclass(frozen=True)
class Axis:
    """How the pixels along one axis are resized.

    Args:
        source: Number of input pixels.
        target: Number of output pixels.
        scale: Source pixels per target pixel.
        start: Source pixels cut off at the start.
        placed: Target pixels that the source reaches; the rest is margin.
    """

    source: int
    target: int
    scale: float
    start: float
    placed: int


def cover(frame: tuple[int, int], size: tuple[int, int]) -> tuple[Axis, Axis]:
    """A frame (H, W) that covers the input, its overhang cut off evenly."""
    resized = [max(s, t) for s, t in zip(_scaled(frame, size), size, strict=True)]
    rows, columns = (
        Axis(f, t, f / r, round((r - t) / 2) * f / r, t)
        for f, t, r in zip(frame, size, resized, strict=True)
    )
    return rows, columns


def letterbox(frame: tuple[int, int], size: tuple[int, int]) -> tuple[Axis, Axis]:
    """All of a frame (H, W) in the top left corner of the input."""
    placed = [max(1, min(s, t)) for s, t in zip(_scaled(frame, size), size, strict=True)]
    rows, columns = (Axis(f, t, f / p, 0.0, p) for f, t, p in zip(frame, size, placed, strict=True))
    return rows, columns


def resize_matrix(axis: Axis) -> np.ndarray:
    """f32[target, source]: the triangle filter of bilinear resizing; the margin is zero."""
    targets = np.arange(axis.target)[:, None] + 0.5
    sources = np.arange(axis.source)[None, :] + 0.5
    distance = np.abs(sources - axis.start - targets * axis.scale) / max(axis.scale, 1.0)
    weights = np.clip(1 - distance, 0, None) * (targets < axis.placed)
    return (weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)).astype(np.float32)


def _scaled(frame: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Each side where the other fits `size` exactly, in whole pixels rounded down."""
    (height, width), (rows, columns) = frame, size
    return height * columns // width, width * rows // height
