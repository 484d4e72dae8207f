"""A training's state on disk: whole, or as it was before."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hgkd_edge.errors import RunError, TrainingError, reason_of
from hgkd_edge.files import atomic_write, hint_for_write

__all__ = ["mend_for", "read_checkpoint", "write_checkpoint"]


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
            f"checkpoint {file} cannot be used: {reason_of(error)}",
            hint="is it of this recipe? Without --resume a new run begins",
        ) from error


def mend_for(error: Exception, file: Path) -> str:
    """The fix for a write to `file` that failed; torch reports a full disk without its number."""
    return hint_for_write(error.errno if isinstance(error, OSError) else errno.ENOSPC, file)
