"""WebDataset shards: local tar files, read with random access through a cached index.

A sample is the members of one tar that share a name up to its first dot: an image, and its label in
a `.cls`, `.json` or `.txt` file next to it. With the index, shards behave like a folder: image
order, resume and each process's share stay exact.
"""

from __future__ import annotations

import glob
import hashlib
import os
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hgkd_edge import processes
from hgkd_edge.cells import counted
from hgkd_edge.console import track_steps
from hgkd_edge.data.find_images import IMAGE_SUFFIXES, is_image, why_not_an_image
from hgkd_edge.data.holdout import with_holdout
from hgkd_edge.data.images import MAX_FILE_BYTES, require_size
from hgkd_edge.data.names import ClassNames, name_classes, readable, split_in
from hgkd_edge.data.photos import UNLABELED, Listing, Photos
from hgkd_edge.errors import DataError, reason_of
from hgkd_edge.files import cache_dir, write_json
from hgkd_edge.parsing import MAX_LABEL_BYTES, cut, parse_json, read_text
from hgkd_edge.recipe_sections import DataConfig

__all__ = ["shard_files", "shard_photos"]

# WebDataset's naming rule gives this for `cam0.0001.jpg` and `cam0.0002.jpg`.
SHARED_KEY = "shares its sample name, which ends at the first dot, with another image"
LONGEST_NAME = 4096  # characters, as for a path on disk
BAD_NAME = f"the member's name has more than {LONGEST_NAME} characters"
BAD_MEMBER = "the member is sparse or too large"
LABEL_FILES = ("cls", "json", "txt")  # in order of preference: .txt may be a caption
INDEX_VERSION = 5  # of the cached index: increase it with its format, or when more is refused


class Member(NamedTuple):
    """One image in a shard: the position of its bytes, and its label's text ('' if none)."""

    name: str
    offset: int
    size: int
    label: str


@dataclass
class Index:
    """The contents of a shard.

    Attributes:
        photos: In shard order.
        unused: Images that are not used, with the reason.
    """

    photos: list[Member] = field(default_factory=list)
    unused: list[tuple[str, str]] = field(default_factory=list)


def shard_photos(config: DataConfig) -> Listing:
    """Images of local WebDataset shards.

    Shards whose file or folder is named after a split (`train-000.tar`, `val/000.tar`) belong to
    it. If all belong to one split, a share of the images is held out.

    Raises:
        DataError: No shard exists, one is not a tar file, or none holds an image.
    """
    files = shard_files(str(config.path))
    # Other processes find the index in the cache.
    processes.on_main_for_long(lambda alive: _index_unknown(files, alive))
    indices = {file: _read_index(file) for file in files}
    shards = {file: index.photos for file, index in indices.items() if index.photos}
    if not shards:
        raise DataError(
            f"data.path '{config.path}': no image in {counted(len(files), 'shard')}",
            hint=f"images are members named {', '.join(sorted(IMAGE_SUFFIXES))}",
        )
    classes = _classes([member.label for photos in shards.values() for member in photos])
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
    unused = [
        (f"{readable(file.name)}/{name}", reason)
        for file, index in indices.items()
        for name, reason in index.unused
    ]
    remarks = [*classes.remarks, *_remark_unused(unused, indices)]
    return Listing(splits, classes.names, unused, remarks)


def _remark_unused(unused: list[tuple[str, str]], indices: dict[Path, Index]) -> list[str]:
    """One line for every reason that images are not used."""
    used = sum(len(index.photos) for index in indices.values())
    examples: dict[str, list[str]] = {}
    for name, reason in unused:
        examples.setdefault(reason, []).append(name)
    return [
        f"warning: {len(names)} of {used + len(unused)} images in the shards are skipped: {reason}"
        f", such as {names[0]}"
        for reason, names in examples.items()
    ]


class _Shards:
    """Reads images by number from several shards. It reopens the file each time, so that threads
    share no state.
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


def _photos(shards: dict[Path, list[Member]], classes: ClassNames) -> Photos:
    reader = _Shards(shards)
    labels = [member.label for index in shards.values() for member in index]
    return Photos(
        names=[
            f"{readable(file.name)}/{member.name}"
            for file, index in shards.items()
            for member in index
        ],
        labels=np.array(classes.numbers(labels, unknown=UNLABELED), np.int64),
        read=reader.read,
        size=reader.size,
    )


def shard_files(pattern: str) -> list[Path]:
    """Shard files from a folder, a brace pattern (`train-{000..127}.tar`) or a glob pattern.

    An existing path is never treated as a pattern, whatever characters it holds.

    Raises:
        DataError: No shard exists, or some are missing.
    """
    from braceexpand import braceexpand

    base, rest = _existing_part(Path(pattern).expanduser())
    if not rest and base.is_file():
        return [base]
    files: list[Path] = []
    for name in braceexpand(rest or "**/*.tar"):
        if glob.has_magic(name) and not (base / name).is_file():
            found = sorted(glob.glob(os.path.join(glob.escape(str(base)), name), recursive=True))
            files += [Path(file) for file in found]
        else:
            files.append(base / name)
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f"data.path '{pattern}': {len(missing)} of {len(files)} shards are missing, "
            f"the first is {missing[0]}",
            hint="shards must be local .tar files; copy remote ones first",
        )
    if not files:
        raise DataError(
            f"data.path '{pattern}' names no .tar file",
            hint="--set 'data.path=shards/{000..127}.tar', or name their folder",
        )
    return files


def _existing_part(path: Path) -> tuple[Path, str]:
    """The longest existing leading part of a path, and the rest of it."""
    for base in (path, *path.parents):
        if base.exists():
            return base, "" if base == path else str(path.relative_to(base))
    return Path(), str(path)


def _split_of(file: Path) -> str:
    return split_in(file.stem) or split_in(file.parent.name) or "train"


def _index_unknown(files: Sequence[Path], alive: Callable[[], None]) -> None:
    """Add the index of every shard to the cache if it is missing."""
    unknown = [file for file in files if not _cache_file(file).is_file()]
    if not unknown:
        return
    with track_steps("indexing shards", total=len(unknown)) as show, ThreadPoolExecutor() as pool:
        indices = pool.map(_index, unknown)  # threads help if the disk is slow
        for done, (file, index) in enumerate(zip(unknown, indices, strict=True), start=1):
            write_json(_cache_file(file), vars(index))
            show(done, "")
            alive()


def _read_index(file: Path) -> Index:
    cache = _cache_file(file)
    if not cache.is_file():
        return _index(file)
    known = parse_json(read_text(cache))
    return Index(
        [Member(*row) for row in known["photos"]],
        [(name, reason) for name, reason in known["unused"]],
    )


def _cache_file(file: Path) -> Path:
    facts = file.stat()
    key = f"{INDEX_VERSION}\0{file.resolve()}\0{facts.st_size}\0{facts.st_mtime_ns}"
    name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return cache_dir() / "shards" / f"{name}.json"


def _index(file: Path) -> Index:
    """Images of one shard, in shard order."""
    images: dict[str, list[tarfile.TarInfo]] = {}
    labels: dict[str, dict[str, str]] = {}  # key -> extension -> text
    index = Index()
    try:
        with tarfile.open(file, "r:", encoding="utf-8", errors="surrogateescape") as shard:
            for member in shard:
                if member.size < 0:  # would be read backwards, possibly forever
                    raise tarfile.ReadError(f"a member says that it has {member.size} bytes")
                if len(member.name) > LONGEST_NAME:
                    index.unused.append((readable(cut(member.name)), BAD_NAME))
                    continue
                key, extension = _key_and_extension(member.name)
                if not member.isfile() or not key:
                    continue
                if member.issparse() or member.size > MAX_FILE_BYTES:
                    # The size is only a claim: the archive may not contain all the bytes.
                    index.unused.append((readable(member.name), BAD_MEMBER))
                elif is_image(f"{key}.{extension}"):
                    images.setdefault(key, []).append(member)
                elif extension in LABEL_FILES and member.size <= MAX_LABEL_BYTES:
                    stream = shard.extractfile(member)
                    assert stream is not None, "isfile() was asked"
                    text = _label_text(extension, stream.read())
                    labels.setdefault(key, {})[extension] = text
                elif reason := why_not_an_image(f"{key}.{extension}"):
                    index.unused.append((readable(member.name), reason))
            _require_end(shard)
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"shard '{file}' cannot be read: {reason_of(error)}",
            hint="it must be an uncompressed, whole tar",
        ) from error
    for key, members in images.items():
        photo = min(members, key=_dots)  # prefer `0001.png` to `0001.depth.png`
        texts = labels.get(key, {})
        label = next(filter(None, (texts.get(extension) for extension in LABEL_FILES)), "")
        index.photos.append(Member(readable(photo.name), photo.offset_data, photo.size, label))
        rivals = [m for m in members if m is not photo and not _is_view(m, photo)]
        index.unused += [(readable(member.name), SHARED_KEY) for member in rivals]
    return index


def _require_end(shard: tarfile.TarFile) -> None:
    """Refuse what `tarfile` takes for the end and is a damaged header with members behind it."""
    assert shard.fileobj is not None, "it is open"
    shard.fileobj.seek(shard.offset)
    if any(shard.fileobj.read(tarfile.BLOCKSIZE)):
        raise tarfile.ReadError(f"the member at byte {shard.offset:,} is damaged")


def _key_and_extension(name: str) -> tuple[str, str]:
    """A member's sample and the rest of its name in lower case, by WebDataset's rule.

    The sample is everything up to the first dot of the file name; '' for hidden files.
    """
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return (folder + slash + key, extension.lower()) if key and extension else ("", "")


def _dots(member: tarfile.TarInfo) -> int:
    """Number of parts in a name's extension."""
    return member.name.rpartition("/")[2].count(".")


def _is_view(member: tarfile.TarInfo, photo: tarfile.TarInfo) -> bool:
    """Whether a sample's second image is named as its depth map or mask, not by a number."""
    kind = member.name.rpartition("/")[2].split(".")[1]
    return _dots(member) > _dots(photo) and not kind.isdecimal()


def _label_text(extension: str, content: bytes) -> str:
    """A label from a `.cls` or `.txt` file, or from a common key of a `.json` file."""
    text = content.decode("utf-8", "replace").strip()
    if extension != "json":
        return text
    try:
        entry: Any = parse_json(text)
    except ValueError:
        return ""
    if isinstance(entry, dict):
        entry = next((entry[key] for key in ("label", "cls", "class") if key in entry), "")
    return str(entry) if isinstance(entry, (int, str)) else ""


def _classes(labels: Sequence[str]) -> ClassNames:
    """Distinct labels, numbers in numeric order; empty if nearly every image has its own label."""
    classes = name_classes(labels, _in_order)
    if not 2 <= len(classes.names) <= len(labels) / 2:
        return ClassNames([], [])  # captions, not labels
    return classes


def _in_order(names: set[str]) -> list[str]:
    return sorted(names, key=int) if all(map(str.isdecimal, names)) else sorted(names)
