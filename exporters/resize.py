"""Resizing as matrix products: how Pillow and torchvision resize with antialiasing, as a formula.

Row i of the matrix for one axis says how output pixel i is mixed from the input's: a filter around
the pixel's centre, widened when shrinking, its weights summing to one. ONNX's own `Resize` cannot
antialias before opset 18, and TensorRT's cannot at all; a matrix product runs everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Axis", "cover", "letterbox", "resize_matrix", "whole"]

_BICUBIC_A = -0.5  # Pillow's; OpenCV takes -0.75


@dataclass(frozen=True)
class Axis:
    """How the pixels along one axis are laid out anew.

    Args:
        source: Pixels there are.
        target: Pixels wanted.
        scale: Source pixels per target pixel.
        start: Source pixels cut off at the beginning.
        placed: Target pixels that the source reaches; the rest is margin.
    """

    source: int
    target: int
    scale: float
    start: float
    placed: int


def whole(source: int, target: int) -> Axis:
    """All of the source onto all of the target."""
    return Axis(source, target, source / target, 0.0, target)


def cover(frame: tuple[int, int], canvas: tuple[int, int]) -> tuple[Axis, Axis]:
    """A frame (H, W) over all of a canvas, its overhang cut off evenly."""
    scale = min(f / c for f, c in zip(frame, canvas, strict=True))
    rows, columns = (
        Axis(f, c, scale, (f - scale * c) / 2, c) for f, c in zip(frame, canvas, strict=True)
    )
    return rows, columns


def letterbox(frame: tuple[int, int], canvas: tuple[int, int]) -> tuple[Axis, Axis]:
    """All of a frame (H, W) in the top left corner of a canvas."""
    fit = min(c / f for f, c in zip(frame, canvas, strict=True))
    placed = [min(max(1, round(f * fit)), c) for f, c in zip(frame, canvas, strict=True)]
    rows, columns = (
        Axis(f, c, f / p, 0.0, p) for f, c, p in zip(frame, canvas, placed, strict=True)
    )
    return rows, columns


def resize_matrix(axis: Axis, *, bicubic: bool) -> np.ndarray:
    """f32[target, source]: the cubic filter or, for bilinear, the triangle; the margin is zero."""
    targets = np.arange(axis.target)[:, None] + 0.5
    sources = np.arange(axis.source)[None, :] + 0.5
    distance = np.abs(sources - axis.start - targets * axis.scale) / max(axis.scale, 1.0)
    weights = _bicubic(distance) if bicubic else np.clip(1 - distance, 0, None)
    weights *= targets < axis.placed
    return (weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)).astype(np.float32)


def _bicubic(t: np.ndarray) -> np.ndarray:
    """Keys' cubic filter, support 2, at distances t >= 0."""
    a = _BICUBIC_A
    near = ((a + 2) * t - (a + 3)) * t**2 + 1
    far = (((t - 5) * t + 8) * t - 4) * a
    return np.where(t < 1, near, np.where(t < 2, far, 0.0))
