"""A training's state on disk: whole, or as it was before."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hgkd_edge.errors import RunError, TrainingError
from hgkd_edge.rundir import atomic_write, cache_dir

__all__ = ["mend_for", "read_checkpoint", "write_checkpoint"]

DISK_IS_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def write_checkpoint(file: Path, state: dict[str, Any], *, resume_command: str) -> None:
    """Write a checkpoint; one that stands there stays as it is until the new one is whole.

    Raises:
        TrainingError: It cannot be written.
    """
    try:
        with atomic_write(file) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        reason = error.strerror if isinstance(error, OSError) else "not all of it came to the disk"
        raise TrainingError(
            f"checkpoint {file} cannot be written at step {state['step']}: {reason}; "
            "the previous checkpoint is untouched",
            hint=f"{mend_for(error, file)}, then go on: {resume_command}",
        ) from error


def read_checkpoint(file: Path, *, device: torch.device, load: Callable[[Any], None]) -> None:
    """Read a checkpoint and `load` its state.

    Raises:
        RunError: It is damaged, or belongs to another model.
    """
    try:
        load(torch.load(file, map_location=device, weights_only=True))
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.PickleError) as error:
        raise RunError(
            f"checkpoint {file} cannot be used: {str(error).splitlines()[0]}",
            hint="is it of this recipe? Without --resume a new run begins",
        ) from error


def mend_for(error: Exception, file: Path) -> str:
    """What helps against a write to `file` that failed."""
    number = error.errno if isinstance(error, OSError) else errno.ENOSPC
    if number in DISK_IS_FULL:
        return "free disk space"
    in_cache = file.absolute().is_relative_to(cache_dir().absolute())
    other = "set HGKD_EDGE_CACHE to another" if in_cache else "name another with --run"
    return f"make the folder writable, or {other}"
