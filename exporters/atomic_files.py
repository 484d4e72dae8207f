"""Write artifacts so that a final name never holds a partial or unverified file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import ExportError, UserError, VerificationFailed

__all__ = [
    "SET_ASIDE",
    "aside_of",
    "atomic_write",
    "file_sha256",
    "flush",
    "hidden_folder",
    "new_artifact",
    "remove_leftovers",
    "require_writable_folder",
    "set_aside",
    "take_lock",
    "temporary_folder",
    "until_proven",
    "was_set_aside",
]


SET_ASIDE = "failed-verification"
_UNPROVEN = ".unproven-"  # prefix of a folder of files that are not finished or verified yet
_TEMPORARY = re.compile(rf"{re.escape(_UNPROVEN)}.+|\..+\.[0-9a-f]{{16}}\.tmp", re.DOTALL)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path next to `path`, renamed to it when the block succeeds, else removed.

    File and folder are flushed: a crash leaves either the old file or the whole new one.

    Raises:
        OSError: It cannot be written; names `path`.
    """
    temporary: Path | None = None
    held: int | None = None  # keeps the temporary file locked
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, held = _new_temporary(path)
        mode = stat.S_IMODE(temporary.stat().st_mode)  # as the umask and the folder say
        yield temporary
        temporary.chmod(mode)  # a library may have put a private file in its place
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except UserError:
        raise
    except Exception as error:
        # A disk-full error has no file name, and is not an OSError when a Rust library raises it.
        number = re.search(r"os error (\d+)", str(error))
        code = error.errno if isinstance(error, OSError) else number and int(number[1])
        if re.fullmatch(r"\d+ requested and \d+ written", str(error)):
            code = errno.ENOSPC  # NumPy gives no number
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from error
    finally:
        if temporary is not None and held is not None:
            temporary.unlink(missing_ok=True)
            os.close(held)


@contextlib.contextmanager
def new_artifact(path: str | Path) -> Iterator[Path]:
    """As `atomic_write`, for a file that the user named.

    Raises:
        ExportError: The folder cannot be made or written to.
    """
    path = Path(path)
    require_writable_folder(path)
    try:
        with atomic_write(path) as temporary:
            yield temporary
    except OSError as error:
        raise _unwritable(path, error) from error


def require_writable_folder(path: Path) -> None:
    """Make the folder of a file about to be written.

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


def file_sha256(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def until_proven(path: str | Path) -> Iterator[Path]:
    """Yield a path of the same name in a hidden folder, for a file that must be verified first.

    When the block succeeds, everything written there moves next to `path`, and files that an
    earlier attempt set aside are removed. On `VerificationFailed` the file is set aside instead and
    `path` is removed, so that no older file is mistaken for this one.

    Raises:
        ExportError: The folder cannot be made or written to.
    """
    path = Path(path)
    require_writable_folder(path)
    with hidden_folder(path.parent) as folder:
        lent = folder / path.name
        try:
            yield lent
        except VerificationFailed:
            _remove(path)
            if lent.exists():
                set_aside(lent, SET_ASIDE)
            raise
        try:
            # The file that names the others is moved last: it exists only when they do.
            for file in sorted(folder.iterdir(), key=lambda file: file == lent):
                os.replace(file, path.parent / file.name)
            flush(path.parent)
            _remove(aside_of(path))
        except OSError as error:
            raise _unwritable(path, error) from error


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes left directly in a folder.

    Those of living processes are locked. On a file system without locks, nothing is removed.
    """
    with contextlib.suppress(OSError):  # not a folder, or one that cannot be changed
        for left in folder.iterdir():
            if _TEMPORARY.fullmatch(left.name):
                with _opened(left) as descriptor:
                    if take_lock(descriptor) is True:
                        shutil.rmtree(left) if left.is_dir() else left.unlink()


def take_lock(descriptor: int) -> bool | None:
    """Lock an open file or folder until it is closed; False if it is taken, None without locks."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of a file or folder, never reached through a link at `path`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def temporary_folder(prefix: str = "hgkd-edge-", parent: Path | None = None) -> Iterator[Path]:
    """A new folder that is removed at the end, as far as that is allowed.

    Where the parent has become read-only, Python's own `TemporaryDirectory` recurses without end.

    Args:
        prefix: Start of its name.
        parent: Where it is made; None: in TMPDIR.
    """
    name = tempfile.mkdtemp(prefix=prefix, dir=parent)
    try:
        yield Path(name)
    finally:
        shutil.rmtree(name, ignore_errors=True)


@contextlib.contextmanager
def hidden_folder(parent: Path) -> Iterator[Path]:
    """A locked folder for files that are not finished or verified; one of a killed process goes."""
    remove_leftovers(parent)
    with contextlib.ExitStack() as held:
        name = ""
        while not os.path.isdir(name):  # taken for a leftover before it was locked
            name = str(held.enter_context(temporary_folder(_UNPROVEN, parent)))
            with contextlib.suppress(FileNotFoundError):
                if take_lock(held.enter_context(_opened(Path(name)))) is False:
                    name = ""
        yield Path(name)


def _new_temporary(path: Path) -> tuple[Path, int]:
    """A new, locked file next to `path`, and the descriptor that holds the lock."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        held = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if take_lock(held) is not False and temporary.exists():
            return temporary, held
        os.close(held)  # taken for a leftover before it was locked


def set_aside(path: str | Path, reason: str) -> Path:
    """Rename `net.onnx` to `net.<reason>.onnx`, so that it is not deployed under its usual name.

    Files that belong to it (the weights of an OpenVINO .xml, the sidecar of an engine) are renamed
    too. A file from `until_proven` moves out of the hidden folder.
    """
    path = Path(path)
    lent = path.parent.name.startswith(_UNPROVEN)
    aside = aside_of(path.parent.with_name(path.name) if lent else path, reason)
    for file, target in zip(_belonging(path), _belonging(aside), strict=True):
        if file.exists():
            os.replace(file, target)
    return aside


def aside_of(path: Path, reason: str = SET_ASIDE) -> Path:
    """Where a file is kept once it is set aside."""
    return path.with_name(f"{path.stem}.{reason}{path.suffix}")


def _belonging(path: Path) -> list[Path]:
    """A file, its sidecar if any, and the weights of an OpenVINO .xml."""
    weights = [path.with_suffix(".bin")] if path.suffix == ".xml" else []
    return [path, path.with_name(f"{path.name}.json"), *weights]


def _remove(path: Path) -> None:
    for file in _belonging(path):
        file.unlink(missing_ok=True)


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
        hint="choose a folder that exists or can be created, and that you can write to",
    )
