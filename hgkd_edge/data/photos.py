"""Images that are listed but not yet read, from any source."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from hgkd_edge.cells import counted
from hgkd_edge.data.names import readable

__all__ = ["UNLABELED", "Listing", "Photos", "outside"]

UNLABELED = -1
T = TypeVar("T")


@dataclass(frozen=True)
class Photos:
    """Images of one split, stored as columns instead of objects to stay small with millions.

    Attributes:
        names: One per image, unique within the source.
        labels: int64 [n], -1 where unlabeled; or, where images may have several labels or none,
            int8 [n, classes] of 0 and 1.
        read: Returns the bytes of image file i.
        size: Returns the size of image file i in bytes, without reading it (-1: unknown).
        version: Version of the whole collection, if it has one, to detect changes that keep sizes.
    """

    names: Sequence[str]
    labels: np.ndarray
    read: Callable[[int], bytes]
    size: Callable[[int], int]
    version: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def select(self, indices: Sequence[int]) -> Photos:
        """The images at `indices`, in that order."""
        return Photos(
            names=[self.names[i] for i in indices],
            labels=self.labels[np.asarray(indices, np.int64)],
            read=partial(_at, self.read, indices),
            size=partial(_at, self.size, indices),
            version=self.version,
        )


@dataclass(frozen=True)
class Listing:
    """The contents of a source.

    Attributes:
        splits: Split name -> its images.
        classes: Class names; empty: unlabeled.
        unused: Image files that are not used, with the reason.
        remarks: Remarks on names, one line each.
    """

    splits: dict[str, Photos]
    classes: list[str]
    unused: Sequence[tuple[str, str]] = ()
    remarks: Sequence[str] = ()

    @property
    def multi_hot(self) -> bool:
        """Whether an image may have several labels or none."""
        return any(photos.labels.ndim == 2 for photos in self.splits.values())


def outside(root: Path, files: Iterable[Path]) -> str:
    """A remark about files that a list or annotations name outside of their folder; '' if none.

    Such a data set may come from someone else and name private images of its user.
    """
    inside = os.path.join(os.path.abspath(root), "")
    away = [file for file in files if not os.path.abspath(file).startswith(inside)]
    if not away:
        return ""
    first = readable(str(away[0]))
    return f"warning: {counted(len(away), 'image')} outside {root}, such as {first}"


def _at(column: Callable[[int], T], indices: Sequence[int], i: int) -> T:
    return column(indices[i])
