"""Mirrors a folder under a path without glob characters: real subfolders, a link per file.

Some libraries treat a folder's path as a glob pattern, so that `a[1]` finds nothing, or finds the
files of `a1`. They resolve links first, so a link to the folder does not help. Links to its files
do.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from hgkd_edge.errors import DataError
from hgkd_edge.files import cache_dir
from hgkd_edge.parsing import cut

__all__ = ["looks_like_pattern", "without_pattern"]


def looks_like_pattern(path: Path) -> bool:
    """Whether a library that expands glob patterns and chained URLs would misread a path."""
    return glob.has_magic(str(path)) or "::" in str(path)


def without_pattern(folder: Path) -> Path:
    """The folder itself or, if its path looks like a pattern, a mirror of it in the cache.

    A mirror's name depends on the folder and the file names in it, and a mirror never changes. So
    processes can share it, and results that a library caches by path stay valid. Contents are read
    through the links.

    Raises:
        DataError: The mirror cannot be written, or the cache's own path looks like a pattern.
    """
    real = folder.resolve()
    if not looks_like_pattern(real):
        return folder
    mirrors = cache_dir().resolve() / "folders"
    if looks_like_pattern(mirrors):
        raise DataError(
            f"data.path '{folder}' has a name that looks like a pattern, and so has the cache "
            f"folder {cut(str(mirrors))}",
            hint="set HGKD_EDGE_CACHE to a folder without [ ] * ? :: in its path",
        )
    names = _names(real)
    mirror = mirrors / _key(real, names)
    if not mirror.is_dir():
        try:
            _write(real, names, mirror)
        except OSError as error:
            raise DataError(
                f"data.path '{folder}': cannot link its files in {mirrors}: {error.strerror}",
                hint="rename the folder to a name without [ ] * ? ::, or set HGKD_EDGE_CACHE to a "
                "folder you can write to",
            ) from error
    return mirror


def _names(folder: Path) -> list[str]:
    """Everything in a folder except folders, by relative path; links are not followed."""
    found = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        found += [os.path.relpath(os.path.join(place, name), folder) for name in [*files, *links]]
    return sorted(found)


def _key(folder: Path, names: list[str]) -> str:
    listing = "\0".join([str(folder), *names])
    return hashlib.sha256(os.fsencode(listing)).hexdigest()[:32]


def _write(folder: Path, names: list[str], mirror: Path) -> None:
    """Write a mirror under a temporary name, then rename it; the first process to finish wins."""
    mirror.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".", dir=mirror.parent))
    try:
        for name in names:
            link = temporary / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(folder / name)
        with contextlib.suppress(FileExistsError):
            os.rename(temporary, mirror)
    except OSError:
        if not mirror.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
