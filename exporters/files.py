"""Writing artefacts so that a final name never holds half a file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import ExportError

__all__ = [
    "SET_ASIDE",
    "atomic_path",
    "digest",
    "flush",
    "require_writable_folder",
    "set_aside",
    "was_set_aside",
    "write_bytes",
]


SET_ASIDE = "failed-verification"


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Lend a temporary path beside `path`; on success it becomes `path`, on failure it is removed.

    The temporary file keeps the suffix, because some writers look at it. It is flushed to disk
    before the rename, so a crash leaves either the old file or the whole new one.

    Raises:
        ExportError: The folder cannot be made or written to.
    """
    path = Path(path)
    require_writable_folder(path)
    try:
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
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def require_writable_folder(path: Path) -> None:
    """Make the folder of a file that is going to be written.

    Raises:
        ExportError: It cannot be made or written to, or `path` is itself a folder.
    """
    if path.is_dir():
        raise ExportError(f"cannot write '{path}': it is a folder", hint="name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise _unwritable(path, error) from error


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
    """Rename `net.onnx` to `net.<reason>.onnx`, so that nobody deploys it by its usual name.

    What belongs to it (the weights of an OpenVINO .xml, the sidecar of an engine) goes with it.
    """
    path = Path(path)
    aside = path.with_name(f"{path.stem}.{reason}{path.suffix}")
    os.replace(path, aside)
    sidecar = path.with_name(f"{path.name}.json")
    if sidecar.is_file():
        os.replace(sidecar, aside.with_name(f"{aside.name}.json"))
    if path.suffix == ".xml":
        os.replace(path.with_suffix(".bin"), aside.with_suffix(".bin"))
    return aside


def was_set_aside(path: str | Path) -> bool:
    """Whether a file failed its verification, by the name that `set_aside` gave it."""
    return f".{SET_ASIDE}." in Path(path).name


def flush(path: Path) -> None:
    """Wait until a file or folder is on disk."""
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
