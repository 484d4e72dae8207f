"""`embed`: features of images, from a distilled backbone. No torch for ONNX."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from hgkd_edge import embedding
from hgkd_edge.api.result import Result

__all__ = ["Embeddings", "embed"]

AnyPath = str | os.PathLike[str]


class Embeddings(Result):
    """Features of images: a `Result` with the arrays.

    Attributes:
        files: Image files, one per row.
        features: Float32 [n, D].
        skipped: Files that could not be read, each with the reason.
    """

    def __init__(self, found: embedding.Embedded, summary: embedding.Summary) -> None:
        super().__init__(summary.to_dict(), summary.lines)
        self.files, self.features, self.skipped = found.files, found.features, found.skipped

    def nearest(self, count: int = embedding.NEIGHBORS) -> np.ndarray:
        """Rows of the images most similar to each image, best first: int [n, count].

        Args:
            count: Neighbors per image; no more than there are other images.
        """
        return embedding.nearest(self.features, min(count, len(self.files) - 1))


def embed(
    model: AnyPath,
    images: AnyPath | Iterable[AnyPath],
    out: AnyPath | None = None,
    *,
    neighbors: AnyPath | None = None,
) -> Embeddings:
    """Compute a backbone's features of images: for search, deduplication and active learning.

    Args:
        model: A run's folder or name, or a backbone that `export(backbone=True)` wrote (`.onnx`).
        images: Image files, or folders of them.
        out: Write the features to this file: `.npz` (arrays `features` and `images`) or `.parquet`
            (columns `image` and `features`; needs pyarrow).
        neighbors: Draw a few images with their nearest neighbors to this picture file.

    Returns:
        One row per image that could be read.

    Raises:
        RunError: The model cannot be opened.
        DataError: There are no images, none can be read, or `out` has another suffix.
        MissingPackageError: PyTorch or pyarrow is missing.

    Example:
        `hgkd_edge.embed("runs/demo", "photos").nearest(3)`
    """
    chosen = [images] if isinstance(images, (str, os.PathLike)) else images
    file = None if out is None else Path(out)
    found = embedding.embed(Path(model), [Path(image) for image in chosen], file)
    picture = embedding.draw_neighbors(found, Path(neighbors)) if neighbors is not None else None
    return Embeddings(found, embedding.Summary.of(found, file, picture))
