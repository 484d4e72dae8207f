"""Locks, regular files, JSON files and the cache. Atomic writes: `exporters.atomic_files`."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from exporters.atomic_files import (
    atomic_write,
    file_sha256,
    remove_leftovers,
    require_writable_folder,
    take_lock,
)
from hgkd_edge.errors import RunError

__all__ = [
    "atomic_write",
    "cache_dir",
    "cache_limit",
    "engines_dir",
    "file_sha256",
    "hint_for_write",
    "is_cached",
    "locked",
    "open_regular",
    "read_regular",
    "remove_leftovers",
    "require_writable_folder",
    "reserve",
    "take_lock",
    "write_json",
]

CACHE_GB = 100
DISK_IS_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextlib.contextmanager
def open_regular(path: Path, flags: int) -> Iterator[int]:
    """A descriptor of a regular file, never reached through a link at `path`.

    A pipe, a device or a socket is rejected without waiting.

    Args:
        path: The file; created where `flags` hold `O_CREAT`, with the umask applied.
        flags: As for `os.open`.

    Raises:
        OSError: It cannot be opened, is a link, or is not a regular file; names `path`.
    """
    safe = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags | safe, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield descriptor
    finally:
        os.close(descriptor)


def read_regular(path: Path) -> bytes:
    """All bytes of a regular file, opened as `open_regular` does."""
    with open_regular(path, os.O_RDONLY) as descriptor, open(descriptor, "rb", closefd=False) as f:
        return f.read()


@contextlib.contextmanager
def locked(folder: Path, on_wait: Callable[[int], None]) -> Iterator[None]:
    """Lock a folder, waiting for other processes; a killed process leaves no lock.

    Args:
        folder: Made if it does not exist.
        on_wait: Called every second while another process holds the folder, with the seconds so
            far, from 0; an exception from it ends the waiting.

    Raises:
        RunError: The folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{folder}: {error.strerror}", hint=hint_for_write(error.errno, folder)
        ) from error
    with open_regular(folder / ".lock", os.O_RDWR | os.O_CREAT) as lock:
        for seconds in itertools.count():
            if take_lock(lock) is not False:
                break
            on_wait(seconds)
            time.sleep(1)
        remove_leftovers(folder)
        yield


def reserve(file: int, size: int) -> None:
    """Allocate an open file's bytes: a full disk under a mapped file kills the process.

    Raises:
        OSError: The disk is full.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def cache_dir() -> Path:
    """Folder of reusable results: $HGKD_EDGE_CACHE, else $XDG_CACHE_HOME/hgkd-edge.

    Raises:
        RunError: Neither is set, and this user has no home folder.
    """
    if named := os.environ.get("HGKD_EDGE_CACHE"):
        return Path(named)
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise RunError(
            "the cache has no folder: HOME is not set",
            hint="set HGKD_EDGE_CACHE to a folder you can write to",
        ) from error
    return Path(base) / "hgkd-edge"


def cache_limit() -> float:
    """Maximum bytes of reusable results; the least recently used are removed beyond that.

    Raises:
        RunError: $HGKD_EDGE_CACHE_GB is not a number above 0.
    """
    named = os.environ.get("HGKD_EDGE_CACHE_GB") or CACHE_GB
    try:
        gigabytes = float(named)
    except ValueError:
        gigabytes = 0.0
    if not gigabytes > 0:
        raise RunError(
            f"HGKD_EDGE_CACHE_GB = '{named}': must be a number of gigabytes above 0",
            hint=f"export HGKD_EDGE_CACHE_GB={CACHE_GB}",
        )
    return gigabytes * 1e9


def engines_dir() -> Path:
    """Folder that records the TensorRT engines built by this user on this machine."""
    return cache_dir() / "engines"


def hint_for_write(number: int | None, file: Path) -> str:
    """The fix for a write to `file` that failed with this errno."""
    if number in DISK_IS_FULL:
        return "free disk space"
    if is_cached(file):
        return "make the folder writable, or set HGKD_EDGE_CACHE to a folder you can write to"
    return "make the folder writable"


def is_cached(file: Path) -> bool:
    """Whether a file is in the cache."""
    with contextlib.suppress(RunError):  # there is no cache
        return file.absolute().is_relative_to(cache_dir().absolute())
    return False
