"""Every error of this package that a user can see.

    UserError                 what was wrong and where; `hint` says how to fix it (exporters.errors)
    ├── RecipeError           a recipe file or --set value                      exit 2
    ├── DataError             images, labels, folders                           exit 2
    ├── OutOfMemory           memory is missing while an image is read          exit 1
    ├── RunError              a run folder that is missing, foreign or broken   exit 2
    ├── DeviceError           a device that cannot be reached or used           exit 2
    ├── ConversionError       sparse <-> dense, or an unsupported layer         exit 2
    ├── TrainingError         failed while working (non-finite loss, disk full) exit 1
    │   └── Interrupted       stopped by Ctrl-C or SIGTERM, progress saved      exit 130
    ├── WrongOutputs          a file to be timed differs from its ONNX file      exit 1
    ├── WorkFailed            work on a device failed, or the connection broke  exit 1
    ├── StreamLost            a camera or stream broke and did not come back    exit 1
    ├── MissingPackageError   a package is not installed; names the extra       exit 2
    └── ExportError           a file or option that cannot be exported          exit 2
        ├── ConversionFailed  the exporter, parser or builder gave up           exit 1
        └── VerificationFailed  the converted network's outputs differ          exit 1
            └── ExportIncomplete  some files of an export failed (export_record)

The command line prints one line (`error: ...`, then `hint: ...`) and ends with `exit_code`.
"""

from __future__ import annotations

import sys

from exporters.errors import (
    ConversionFailed,
    ExportError,
    MissingPackageError,
    UserError,
    VerificationFailed,
    reason_of,
)

__all__ = [
    "ConversionError",
    "ConversionFailed",
    "DataError",
    "DeviceError",
    "ExportError",
    "Interrupted",
    "MissingPackageError",
    "OutOfMemory",
    "RecipeError",
    "RunError",
    "StreamLost",
    "TrainingError",
    "UserError",
    "VerificationFailed",
    "WorkFailed",
    "WrongOutputs",
    "is_out_of_memory",
    "raise_if_out_of_memory",
    "reason_of",
]


class RecipeError(UserError):
    """An invalid recipe or `--set` override."""


class DataError(UserError):
    """Images or labels that cannot be read or used."""


class OutOfMemory(UserError):
    """An image cannot be read because memory is missing."""

    exit_code = 1


class RunError(UserError):
    """A run folder that is missing, incomplete or not written by hgkd-edge."""


class DeviceError(UserError):
    """A device that cannot be reached, or cannot do what was asked."""


class ConversionError(UserError):
    """A model that cannot be made sparse or dense; names the module path."""


class TrainingError(UserError):
    """Training stopped by a run-time error."""

    exit_code = 1


class Interrupted(TrainingError):
    """Training stopped on request; progress is saved."""

    exit_code = 130


class WrongOutputs(UserError):
    """The network to be timed gives other outputs than its ONNX file."""

    exit_code = 1


class WorkFailed(UserError):
    """The work on the device failed, or the connection broke. Exit code 1: the work had started."""

    exit_code = 1


class StreamLost(UserError):
    """A live source that broke and did not come back in time."""

    exit_code = 1


def raise_if_out_of_memory(error: BaseException, image: object) -> None:
    """For code that skips an image whatever is wrong with it: missing memory is another matter.

    Args:
        error: What reading the image raised.
        image: Its name.

    Raises:
        OutOfMemory: The error says that memory is missing. Decoders of WebP and of progressive JPEG
            do not say so: they report damage.
    """
    if isinstance(error, OutOfMemory):
        raise error
    if is_out_of_memory(error):
        raise OutOfMemory(
            f"{image}: out of memory while it is read",
            hint="close other programs, or use fewer threads (data.workers)",
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch (CPU or GPU), or ONNX Runtime could not allocate memory."""
    # An error of torch exists only where torch is imported; this module never does that.
    of_torch = getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)
    if isinstance(error, (MemoryError, of_torch)):
        return True
    phrases = (
        *("can't allocate memory", "cannot allocate memory", "failed to allocate memory"),
        *("cublas_status_alloc_failed", "bad_alloc", "failed to map segment"),
        *("can't start new thread", "could not create a primitive"),
    )
    kinds = (RuntimeError, OSError, ImportError)
    text = (getattr(error, "strerror", None) or str(error)).lower()  # without a file's name
    return isinstance(error, kinds) and any(each in text for each in phrases)
