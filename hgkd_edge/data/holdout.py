"""`data.holdout`: which images are held out where the data have no split."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping

from hgkd_edge.cells import counted
from hgkd_edge.data.names import readable
from hgkd_edge.data.photos import Photos

__all__ = ["held_out", "shared_images", "with_holdout"]


def with_holdout(splits: dict[str, Photos], share: float) -> dict[str, Photos]:
    """The same splits; if only `train` holds images, a fixed share of them is held out.

    The choice depends on a hash of the name, so adding images never moves existing ones.
    """
    if any(len(photos) for split, photos in splits.items() if split != "train"):
        return splits
    photos = splits["train"]
    held = [held_out(name, share) for name in photos.names]
    parts = {
        "train": [i for i, out in enumerate(held) if not out],
        "holdout": [i for i, out in enumerate(held) if out],
    }
    return {split: photos.select(indices) for split, indices in parts.items() if indices}


def held_out(name: str, share: float) -> bool:
    """Whether an image belongs to the held-out share."""
    draw = int.from_bytes(hashlib.sha256(readable(name).encode()).digest()[:8], "big") / 2**64
    return draw < share


def shared_images(files: Mapping[str, Iterable[str]]) -> list[str]:
    """A remark about images that `train` shares with held-out splits; empty if there are none.

    Args:
        files: Split -> the paths of its images.
    """
    paths = {split: set(map(os.path.normpath, own)) for split, own in files.items()}
    trained = paths.pop("train", set())
    if not (both := trained.intersection(set().union(*paths.values()))):
        return []
    count, first = counted(len(both), "image"), readable(min(both))
    return [
        f"warning: split 'train' shares {count} with held-out splits, such as {first}: their "
        "scores are too high"
    ]
