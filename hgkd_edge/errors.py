"""Every error a user can meet.

    HgkdError                 what went wrong and where; `hint` says how to mend it
    ├── RecipeError           a recipe file or --set value                      exit 2
    ├── DataError             images, labels, folders                           exit 2
    ├── RunError              a run folder that is missing, foreign or broken   exit 2
    ├── MissingExtraError     a package is not installed; names the extra       exit 2
    ├── DeviceError           a device that cannot be reached or used           exit 2
    ├── ConversionError       sparse <-> dense, or an unsupported layer         exit 2
    └── TrainingError         failed while working (non-finite loss, disk full) exit 1
        └── Interrupted       stopped by Ctrl-C or SIGTERM, progress saved      exit 130

`reason_of` puts what another library raised into one line.

The command line prints one line (`error: ...`, then `hint: ...`) and ends with `exit_code`.
"""

from __future__ import annotations

import re

__all__ = [
    "ConversionError",
    "DataError",
    "DeviceError",
    "HgkdError",
    "Interrupted",
    "MissingExtraError",
    "RecipeError",
    "RunError",
    "TrainingError",
    "reason_of",
]

OBJECT = re.compile(r"\s*<[^<>]*\bat 0x[0-9a-fA-F]+[^<>]*>")


class HgkdError(Exception):
    """Base of all errors shown to a user.

    Args:
        message: What was wrong and where (file, key, value, layer path).
        hint: The mend, as something the user can do; may be empty.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


class RecipeError(HgkdError):
    """A recipe, or a `--set` override, that cannot be used."""


class DataError(HgkdError):
    """Images or labels that cannot be read or used."""


class RunError(HgkdError):
    """A run folder that is missing, incomplete or not ours."""


class MissingExtraError(HgkdError):
    """A command needs packages of an extra that is not installed.

    Args:
        what: The command or feature that needs it.
        extra: Name of the extra in `pip install "hgkd-edge[extra]"`.
        package: The import that failed.
    """

    def __init__(self, what: str, *, extra: str, package: str) -> None:
        super().__init__(
            f"{what} needs the package '{package}', which is not installed",
            hint=f'pip install "hgkd-edge[{extra}]"',
        )


class DeviceError(HgkdError):
    """A device that cannot be reached, or cannot do what was asked."""


class ConversionError(HgkdError):
    """A model that cannot be made sparse or dense; names the module path."""


class TrainingError(HgkdError):
    """Training stopped by a fault at run time."""

    exit_code = 1


class Interrupted(TrainingError):
    """Training stopped on request; what was done is saved."""

    exit_code = 130


def reason_of(error: BaseException) -> str:
    """What an exception of another library says, in one line and without addresses of objects.

    The exception's type where nothing else is left, or where the text is no sentence.
    """
    lines = [line.strip() for line in OBJECT.sub("", str(error)).splitlines()]
    text = next((line for line in lines if line), "")
    kind = type(error).__name__
    return f"{kind}: {text}" if text and isinstance(error, LookupError) else text or kind
