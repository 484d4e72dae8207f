"""Decides whether the folders of a tree are splits or classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hgkd_edge.cells import counted
from hgkd_edge.data.names import SPELLINGS, a_few, readable, split_in, split_named, splits_by_name
from hgkd_edge.errors import DataError

__all__ = ["Layout", "read_layout"]


class Layout(NamedTuple):
    """Where the splits of a tree lie.

    Attributes:
        tops: Split -> the folder that holds it; '' for the whole tree.
        remarks: Choices that may be unintended, one line each.
    """

    tops: dict[str, str]
    remarks: list[str]


@dataclass
class _Folder:
    """A top-level folder of a tree: its images, and the images directly in it."""

    images: int = 0
    direct: int = 0

    @property
    def flat(self) -> bool:
        return self.direct > 0

    @property
    def deep(self) -> bool:
        return self.images > self.direct


def read_layout(root: Path, names: Sequence[str]) -> Layout:
    """Find the splits in a tree of images.

    A top-level folder named after a split is that split, if one of them is the training split.

    Args:
        root: The tree, for messages.
        names: Paths of all images, relative to the tree.

    Raises:
        DataError: Two folders are the same split, there is no training split, or it is unclear
            whether the folders are splits or classes.
    """
    folders = _folders(names)
    splits = [folder for folder in folders if split_named(folder)]
    others = [folder for folder in folders if folder not in splits]
    if not splits:
        _refuse_unclear_splits(root, list(folders))
        _refuse_splits_further_down(root, names)
        return Layout({"train": ""}, [])
    if "train" in map(split_named, splits):
        if len(splits) == 1 and folders[splits[0]].flat and any(folders[f].flat for f in others):
            raise DataError(
                f"data.path '{root}': folder '{splits[0]}' can be the training split or a class "
                f"next to {_shown(others)}",
                hint=f"a class: put all class folders into {root / 'train'}; a split: move the "
                "other folders elsewhere",
            )
        tops = splits_by_name(splits, root)
        empty = {split_named(entry.name): entry.name for entry in root.iterdir() if entry.is_dir()}
        tops = {split: name for split, name in empty.items() if split} | tops
        return Layout(
            {split: tops[split] for split in SPELLINGS if split in tops},
            _outside(root, names, set(tops.values())),
        )
    if not others and all("/" in name for name in names):
        raise DataError(
            f"data.path '{root}' has no training split, only {_shown(splits)}",
            hint=f"name a folder 'train', or set data.path to {root / splits[0]}",
        )
    if any(folders[folder].deep for folder in splits):
        raise DataError(
            f"data.path '{root}': {_shown(splits)} looks like a split next to {_shown(others)}, "
            "and there is no folder 'train'",
            hint=f"put the class folders of training into {root / 'train'}",
        )
    stated = f"warning: {_shown(splits)} looks like a split and is used as a class: "
    return Layout(
        {"train": ""}, [stated + "there is no folder 'train' (rename it if it is a class)"]
    )


def _refuse_unclear_splits(root: Path, folders: Sequence[str]) -> None:
    """Refuse folders such as `X_train` and `X_test`: as classes, all would be trained on.

    Raises:
        DataError: Every folder's name contains a split's name, both training and another.
    """
    meant = [split_in(folder) for folder in folders]
    if all(meant) and "train" in meant and len(set(meant)) > 1:
        raise DataError(
            f"data.path '{root}': folders {_shown(folders)} look like splits, not like classes",
            hint="rename them to train, val and test, and put the class folders into them",
        )


def _folders(names: Sequence[str]) -> dict[str, _Folder]:
    """Top-level folders that hold images."""
    folders: dict[str, _Folder] = {}
    for name in names:
        top, _, rest = name.partition("/")
        if rest:
            folder = folders.setdefault(top, _Folder())
            folder.images += 1
            folder.direct += "/" not in rest
    return folders


def _outside(root: Path, names: Sequence[str], tops: set[str]) -> list[str]:
    """A remark about images outside of all split folders."""
    outside = [name for name in names if name.split("/")[0] not in tops or "/" not in name]
    if not outside:
        return []
    return [
        f"warning: {counted(len(outside), 'image')} of {root} not used: outside the splits "
        f"{_shown(sorted(tops))}: such as {readable(outside[0])}"
    ]


def _refuse_splits_further_down(root: Path, names: Sequence[str]) -> None:
    """Refuse training and test images below one folder: all would be trained on.

    Raises:
        DataError: Second-level folders are named after training and another split.
    """
    inside: dict[str, set[str]] = {}
    for name in names:
        parts = name.split("/")
        if len(parts) > 2 and (split := split_named(parts[1])):
            inside.setdefault(parts[0], set()).add(split)
    found = [folder for folder, splits in inside.items() if "train" in splits and len(splits) > 1]
    if not found:
        return
    only = len(_folders(names)) == 1
    raise DataError(
        f"data.path '{root}': the folders in '{readable(found[0])}' look like splits, which belong "
        "to the top",
        hint=f"set data.path to {root / found[0]}"
        if only
        else "put the folders of classes into those of splits: train/CLASS/..., test/CLASS/...",
    )


def _shown(folders: Sequence[str]) -> str:
    return a_few([readable(folder) for folder in folders])
