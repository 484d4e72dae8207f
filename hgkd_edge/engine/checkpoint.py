"""A training's state on disk: written atomically and verified when read.

A checkpoint changes too often for the manifest: a kill between two writes would leave a record of
another file. So its sha256 is stored next to it, in a file that is written first. It lists two
hashes: of the checkpoint about to get the name, and of the one that has it until then.
"""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from hgkd_edge.console import note
from hgkd_edge.errors import RunError, TrainingError, reason_of
from hgkd_edge.files import atomic_write, file_sha256, hint_for_write
from hgkd_edge.models.untrusted import require_stored
from hgkd_edge.parsing import MAX_LABEL_BYTES, read_text

__all__ = ["TrainingState", "fix_for", "read_checkpoint", "write_checkpoint"]

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class TrainingState:
    """Everything that a checkpoint holds, except the step.

    Attributes:
        file: The checkpoint, for errors.
        average: The averaged (EMA) model, if there is one.
        scaler: Of fp16's loss, if there is one.
        images: Fingerprint of the training images and labels, which must not change.
    """

    file: Path
    model: nn.Module
    optimizer: AcceleratedOptimizer
    average: nn.Module | None
    scaler: Any  # torch.amp.GradScaler
    images: str

    def saved(self, step: int) -> dict[str, object]:
        """What `torch.save` writes."""
        return {
            "step": step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.average.state_dict() if self.average else None,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "photos": self.images,
        }

    def restore(self, saved: Any) -> int:
        """Load what `saved` returned; the step.

        Raises:
            RunError: The training images changed.
        """
        if saved.get("photos", self.images) != self.images:
            raise RunError(
                f"{self.file}: the training images, their labels, or how they are decoded, "
                "changed since it was written",
                hint="restore both, or start a new run",
            )
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.average and saved["ema"]:
            self.average.load_state_dict(saved["ema"])
        if self.scaler and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        return int(saved["step"])


def write_checkpoint(file: Path, state: dict[str, object], *, resume_command: str) -> None:
    """Write a checkpoint; an existing one stays unchanged until the new one is complete.

    Raises:
        TrainingError: The checkpoint cannot be written.
    """
    try:
        with atomic_write(file) as temporary:
            torch.save(state, temporary)
            _announce(file, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        reason = error.strerror if isinstance(error, OSError) else "it was not written completely"
        raise TrainingError(
            f"checkpoint {file} cannot be written at step {state['step']}: {reason}; "
            "the previous checkpoint is untouched",
            hint=f"{fix_for(error, file)}, then resume: {resume_command}",
        ) from error


def read_checkpoint(file: Path, *, device: torch.device, load: Callable[[Any], Loaded]) -> Loaded:
    """Read a checkpoint and `load` what was saved; returns what `load` returns.

    Raises:
        RunError: The file is damaged, not the recorded one, or of a different model.
    """
    _require_announced(file)
    try:
        state = torch.load(file, map_location=device, weights_only=True)
        require_stored(state)
        return load(state)
    except (
        RecursionError,
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        EOFError,
        pickle.PickleError,
    ) as error:
        raise RunError(
            f"checkpoint {file} cannot be used: {reason_of(error)}",
            hint="check that it belongs to this recipe; without --resume a new run starts",
        ) from error


def sums_of(file: Path) -> Path:
    """`last.pt` -> `last.pt.sha256`."""
    return file.with_name(f"{file.name}.sha256")


def _announce(file: Path, coming: Path) -> None:
    """Record the sha256 of the checkpoint that is about to replace another."""
    sums = [file_sha256(each) for each in (coming, file) if each.is_file()]
    with atomic_write(sums_of(file)) as temporary:
        temporary.write_text("".join(f"{each}  {file.name}\n" for each in sums), encoding="utf-8")


def _require_announced(file: Path) -> None:
    """Check that a checkpoint is one of those recorded; one without recorded hashes passes."""
    sums = sums_of(file)
    try:
        lines = read_text(sums, MAX_LABEL_BYTES).splitlines()
    except FileNotFoundError:
        return  # written by an earlier version of this package
    except (OSError, ValueError) as error:
        raise RunError(f"{sums}: {reason_of(error)}", hint=f"remove {sums}") from error
    found = file_sha256(file)
    if not any(line.startswith(found) for line in lines):
        raise RunError(
            f"{file}: is not the checkpoint that was written here (sha256 {found[:12]} is not in "
            f"{sums.name})",
            hint=f"put the right file back; or, if you replaced it on purpose, remove {sums}",
        )
    note(f"verified against {sums}: {file.name}")


def fix_for(error: Exception, file: Path) -> str:
    """A hint for a failed write to `file`; torch reports a full disk without its error number."""
    return hint_for_write(error.errno if isinstance(error, OSError) else errno.ENOSPC, file)
