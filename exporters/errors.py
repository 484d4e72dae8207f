"""Every error that a user can see, from the base down. Plain data, no other import.

    UserError                     what was wrong and where; `hint` says how to fix it
    ├── MissingPackageError       a package is not installed; names the extra     exit 2
    ├── ExportError               bad input: a file, a path, an option            exit 2
    │   ├── ConversionFailed      the exporter, parser or builder gave up         exit 1
    │   └── VerificationFailed    the converted network's outputs differ        exit 1
    └── ...                       those of `hgkd_edge`: see `hgkd_edge/errors.py`

`reason_of` turns another library's exception into one line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

__all__ = [
    "ConversionFailed",
    "ExportError",
    "MissingPackageError",
    "UserError",
    "VerificationFailed",
    "reason_of",
]

MOST_CHARACTERS = 300  # of a reason
_MOST_READ = 2_000  # of a library's message, which may hold names of any length from a file
_OBJECT = re.compile(r"\s*<[^<>]*\bat 0x[0-9a-fA-F]+[^<>]*>")
_RUNTIME_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE_PLACE = re.compile(r"/\S+\.(?:cc|cpp|h|hpp):\d+ (?:[^\n]*?\) (?=[A-Z]))?")


class UserError(Exception):
    """Base of all errors shown to a user: one line for what and where, one for the fix.

    Args:
        message: What was wrong and where (file, key, value, layer), in one line.
        hint: A command or an edit that fixes it; may be empty.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


class MissingPackageError(UserError):
    """A step needs a package that is not installed.

    Args:
        what: The command or step that needs it.
        package: The import that failed.
        extra: Name of the extra in `pip install "hgkd-edge[extra]"`.
        more: A further sentence for the hint (another way to get the package).
    """

    def __init__(self, what: str, *, package: str, extra: str, more: str = "") -> None:
        hint = f'pip install "hgkd-edge[{extra}]"'
        self._again = partial(type(self), what, package=package, extra=extra, more=more)
        super().__init__(
            f"{what} needs the package '{package}', which is not installed",
            hint=f"{hint}; {more}" if more else hint,
        )

    def __reduce__(self) -> tuple[Callable[[], MissingPackageError], tuple[()]]:
        return self._again, ()  # pickled for other processes; by default from the message alone


class ExportError(UserError):
    """A file, a path or an option that cannot be exported, read or written."""


class ConversionFailed(ExportError):
    """A network that the exporter, a parser or a builder could not convert."""

    exit_code = 1


class VerificationFailed(ExportError):
    """A converted network whose outputs differ from the original's beyond the tolerance."""

    exit_code = 1


def reason_of(error: BaseException) -> str:
    """An exception's message in one line, without object addresses or foreign source locations.

    Returns the exception's type where no readable text remains.
    """
    if isinstance(error, UserError):
        return error.message
    text = _RUNTIME_PREFIX.sub("", _SOURCE_PLACE.sub("", _OBJECT.sub("", str(error)[:_MOST_READ])))
    lines = (line.strip() for line in text.splitlines())
    first = next((line for line in lines if line), "")[:MOST_CHARACTERS]
    kind = type(error).__name__
    return f"{kind}: {first}" if first and isinstance(error, LookupError) else first or kind
