"""Compare what a network and its INT8 form return."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .runtimes import Outputs, Runner

__all__ = ["output_error", "outputs_of"]


def outputs_of(runner: Runner, images: np.ndarray) -> list[Outputs]:
    """All outputs, batch by batch."""
    return [runner(images[start : start + 8]) for start in range(0, len(images), 8)]


def output_error(wanted: Sequence[Outputs], got: Sequence[Outputs]) -> float:
    """Mean over the outputs of |got - wanted| / |wanted|, in the Euclidean norm over all images."""
    errors = []
    pairs = list(zip(wanted, got, strict=True))
    for name in wanted[0]:
        error = sum(float(np.square(b[name] - a[name]).sum()) for a, b in pairs)
        size = sum(float(np.square(a[name]).sum()) for a in wanted)
        errors.append((error / max(size, 1e-24)) ** 0.5)
    return float(np.mean(errors))
