"""Writing artefacts so that a final name never holds half a file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import ExportError

__all__ = ["atomic_path", "digest", "set_aside", "write_bytes"]


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Lend a temporary path beside `path`; on success it becomes `path`, on failure it is removed.

    The temporary file keeps the suffix, because some writers look at it. It is flushed to disk
    before the rename, so a crash leaves either the old file or the whole new one.

    Raises:
        ExportError: The folder cannot be made or written to.
    """
    path = Path(path)
    if path.is_dir():
        raise ExportError(f"cannot write '{path}': it is a folder", hint="name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
    except OSError as error:
        raise _unwritable(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; an artefact should be as readable as any other file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def digest(path: str | Path) -> str:
    """sha256 of a file, in hexadecimal."""
    sha = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def set_aside(path: str | Path, reason: str) -> Path:
    """Rename `net.onnx` to `net.<reason>.onnx`, so that nobody deploys it by its usual name."""
    path = Path(path)
    aside = path.with_name(f"{path.stem}.{reason}{path.suffix}")
    os.replace(path, aside)
    return aside


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(path: Path, error: OSError) -> ExportError:
    reason = error.strerror or str(error)
    return ExportError(
        f"cannot write '{path}': {reason}",
        hint="choose a folder that exists or can be made, and that you may write to",
    )
