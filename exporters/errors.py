"""Every error a user of `exporters` can meet.

    ExportError               bad input: a file, a path, an option            exit 2
    ├── MissingPackageError   a runtime is not installed; names the extra     exit 2
    ├── ConversionFailed      the exporter, parser or builder gave up         exit 1
    └── VerificationFailed    the converted network gives other numbers       exit 1

Same shape as the errors of the command line (`message`, `hint`, `exit_code`), so both print alike.
"""

from __future__ import annotations

__all__ = ["ConversionFailed", "ExportError", "MissingPackageError", "VerificationFailed"]


class ExportError(Exception):
    """Base of all errors shown to a user.

    Args:
        message: What was wrong and where (file, layer, option), in one line.
        hint: The mend, as something the user can do; may be empty.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


class MissingPackageError(ExportError):
    """A step needs a package that is not installed.

    Args:
        what: The step that needs it.
        package: The import that failed.
        extra: Name of the extra in `pip install "hgkd-edge[extra]"`.
        more: A further sentence for the hint (another way to get the package).
    """

    def __init__(self, what: str, *, package: str, extra: str, more: str = "") -> None:
        hint = f'pip install "hgkd-edge[{extra}]"'
        super().__init__(
            f"{what} needs the package '{package}', which is not installed",
            hint=f"{hint}; {more}" if more else hint,
        )


class ConversionFailed(ExportError):
    """A network that the exporter, a parser or a builder could not convert."""

    exit_code = 1


class VerificationFailed(ExportError):
    """A converted network whose outputs differ from the original's beyond the tolerance."""

    exit_code = 1
