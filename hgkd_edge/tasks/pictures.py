"""Pictures of how a model does, for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hgkd_edge.rundir import atomic_write

__all__ = ["draw_confusion"]


def draw_confusion(confusion: np.ndarray, classes: Sequence[str], path: Path) -> Path:
    """Draw a confusion matrix: rows are true classes, shades are shares of the row.

    Args:
        confusion: Counts, int [classes, classes], [true, predicted].
        classes: Their names.
        path: A PNG file.
    """
    from matplotlib.figure import Figure

    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = max(4.0, 0.45 * len(classes) + 2)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(classes) <= 30:  # more would not be legible
        for (row, column), count in np.ndenumerate(confusion):
            if count:
                colour = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path
