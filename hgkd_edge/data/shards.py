"""WebDataset shards: local tar files, read at random places through an index made once.

A sample is the members of one tar that share a name up to its first dot: an image, and its label in
a `.cls`, `.json` or `.txt` file beside it. With the index, shards behave like a folder: the order
of photos, resume and the share of each process stay exact.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from hgkd_edge import processes
from hgkd_edge.console import track_steps
from hgkd_edge.data.images import require_size
from hgkd_edge.data.photos import (
    IMAGE_SUFFIXES,
    SPLIT_NAMES,
    UNLABELLED,
    Listing,
    Photos,
    with_holdout,
)
from hgkd_edge.errors import DataError, reason_of
from hgkd_edge.recipe import DataConfig
from hgkd_edge.rundir import cache_dir, write_json

__all__ = ["shard_files", "shard_photos"]

INDEX_VERSION = 2  # part of the cached index's name: raise it when the index changes


class Member(NamedTuple):
    """One photo in a shard: where its bytes lie, and its label's text ('' for none)."""

    name: str
    offset: int
    size: int
    label: str


def shard_photos(config: DataConfig) -> Listing:
    """Photos of local WebDataset shards.

    Shards whose file or folder is named after a split (`train-000.tar`, `val/000.tar`) belong to
    it; where all belong to one, a share of the photos is held out.

    Raises:
        DataError: No shard is there, one is no tar file, or none holds an image.
    """
    files = shard_files(str(config.path))
    processes.on_main(lambda: _index_unknown(files))  # the others find it in the cache
    shards = {file: index for file in files if (index := _read_index(file))}
    if not shards:
        raise DataError(
            f"data.path '{config.path}': {len(files)} shards hold no image",
            hint=f"images are members named {', '.join(sorted(IMAGE_SUFFIXES))}",
        )
    classes = _classes([member.label for index in shards.values() for member in index])
    groups: dict[str, list[Path]] = {}
    for file in shards:
        groups.setdefault(_split_of(file), []).append(file)
    splits = {
        split: _photos({file: shards[file] for file in group}, classes)
        for split, group in groups.items()
    }
    if len(splits) == 1:
        (photos,) = splits.values()
        splits = with_holdout({"train": photos}, config.holdout)
    return Listing(splits, classes)


class _Shards:
    """Reads photos by number from several shards; opens a file anew each time, so it has no state
    that threads could share.
    """

    def __init__(self, shards: dict[Path, list[Member]]) -> None:
        self.files = list(shards)
        places = [
            (number, member.offset, member.size)
            for number, index in enumerate(shards.values())
            for member in index
        ]
        self.places = np.array(places, np.int64).reshape(-1, 3)  # shard, offset, size

    def read(self, i: int) -> bytes:
        number, offset, size = self.places[i].tolist()
        require_size(size)
        with self.files[number].open("rb") as shard:
            shard.seek(offset)
            return shard.read(size)

    def size(self, i: int) -> int:
        return int(self.places[i, 2])


def _photos(shards: dict[Path, list[Member]], classes: list[str]) -> Photos:
    number = {name: i for i, name in enumerate(classes)}
    reader = _Shards(shards)
    return Photos(
        names=[f"{file.name}/{member.name}" for file, index in shards.items() for member in index],
        labels=np.array(
            [number.get(m.label, UNLABELLED) for index in shards.values() for m in index], np.int64
        ),
        read=reader.read,
        size=reader.size,
    )


def shard_files(pattern: str) -> list[Path]:
    """Files of a folder, a brace pattern (`train-{000..127}.tar`) or a glob pattern.

    Raises:
        DataError: There are none, or some of them are missing.
    """
    from braceexpand import braceexpand

    if Path(pattern).expanduser().is_dir():
        pattern = f"{pattern}/**/*.tar"
    files: list[Path] = []
    for name in braceexpand(str(Path(pattern).expanduser())):
        found = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]
        files += [Path(file) for file in found]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f"data.path '{pattern}': {len(missing)} of {len(files)} shards are missing, "
            f"the first is {missing[0]}",
            hint="shards must be local .tar files; copy remote ones first",
        )
    if not files:
        raise DataError(
            f"data.path '{pattern}' names no .tar file", hint="such as s/{000..127}.tar"
        )
    return files


def _split_of(file: Path) -> str:
    words = re.split(r"[^a-z]+", f"{file.parent.name} {file.stem}".lower())
    return next((SPLIT_NAMES[word] for word in reversed(words) if word in SPLIT_NAMES), "train")


def _index_unknown(files: Sequence[Path]) -> None:
    """Put the index of every shard into the cache, unless it is there."""
    unknown = [file for file in files if not _cache_file(file).is_file()]
    if not unknown:
        return
    with track_steps("indexing shards", total=len(unknown)) as show, ThreadPoolExecutor() as pool:
        indices = pool.map(_index, unknown)  # threads help where the disk is what is waited for
        for done, (file, index) in enumerate(zip(unknown, indices, strict=True), start=1):
            write_json(_cache_file(file), index)
            show(done, "")


def _read_index(file: Path) -> list[Member]:
    cache = _cache_file(file)
    rows = json.loads(cache.read_text(encoding="utf-8")) if cache.is_file() else _index(file)
    return [Member(*row) for row in rows]


def _cache_file(file: Path) -> Path:
    facts = file.stat()
    key = f"{INDEX_VERSION}\0{file.resolve()}\0{facts.st_size}\0{facts.st_mtime_ns}"
    name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return cache_dir() / "shards" / f"{name}.json"


def _index(file: Path) -> list[Member]:
    """Photos of one shard, in its order."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(file, "r:") as shard:
            for member in shard:
                folder, base = str(PurePosixPath(member.name).parent), Path(member.name).name
                key, _, extension = base.partition(".")
                key = f"{folder}/{key}"
                if not member.isfile() or not extension:
                    continue
                if PurePosixPath(base).suffix.lower() in IMAGE_SUFFIXES:
                    # `0001.depth.png` is not the photo; nor is a second one, but its mask.
                    images[key] = min(images.get(key, member), member, key=_dots)
                elif extension in ("cls", "json", "txt"):
                    stream = shard.extractfile(member)
                    assert stream is not None, "isfile() was asked"
                    text = _label_text(extension, stream.read())
                    labels[key] = text or labels.get(key, "")
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            f"shard '{file}' cannot be read: {reason_of(error)}",
            hint="it must be an uncompressed, whole tar",
        ) from error
    return [
        Member(member.name, member.offset_data, member.size, labels.get(key, ""))
        for key, member in images.items()
    ]


def _dots(member: tarfile.TarInfo) -> int:
    """How many parts a name's extension has."""
    return PurePosixPath(member.name).name.count(".")


def _label_text(extension: str, content: bytes) -> str:
    """A label as it stands in a `.cls` or `.txt` file, or under a usual key of a `.json` file."""
    text = content.decode("utf-8", "replace").strip()
    if extension != "json":
        return text
    try:
        entry: Any = json.loads(text)
    except ValueError:
        return ""
    if isinstance(entry, dict):
        entry = next((entry[key] for key in ("label", "cls", "class") if key in entry), "")
    return str(entry) if isinstance(entry, (int, str)) else ""


def _classes(labels: Sequence[str]) -> list[str]:
    """Distinct labels, numbers in their own order; none where nearly every photo has its own."""
    distinct = set(labels) - {""}
    if not 2 <= len(distinct) <= len(labels) / 2:
        return []  # captions, not labels
    if all(label.isdecimal() for label in distinct):
        return sorted(distinct, key=int)
    return sorted(distinct)
