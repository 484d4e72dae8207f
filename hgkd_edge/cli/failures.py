"""How a command ends: an exit code, and for an error one line with its hint."""

from __future__ import annotations

import errno
import io
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import typer

from hgkd_edge.errors import (
    DataError,
    MissingPackageError,
    OutOfMemory,
    UserError,
    is_out_of_memory,
)
from hgkd_edge.processes import end, is_main, rank

__all__ = ["run_app"]

# click's, which some releases of typer bring under another name.
UsageError: Any = typer.BadParameter.__base__
STOPPED, TERMINATED = 130, 143  # exit codes after Ctrl-C and SIGTERM
MOST_SHOWN = 4000  # characters of an error, and of its hint
# What an OSError says when a file could not be written.
WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


def run_app(app: Callable[[], Any]) -> NoReturn:
    """Run the command line: the one place where an error becomes one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A file name or class that the terminal cannot show is shown as \xe9, and ends nothing.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        code = app()
    except SystemExit as done:  # how typer ends, also well
        if done.code == TERMINATED:
            _fail("stopped", "", TERMINATED)
        end(done.code if isinstance(done.code, int) else 0)
    except KeyboardInterrupt:
        _fail("stopped", "", STOPPED)
    except Exception as error:
        if isinstance(error, UsageError):
            _fail_usage(error)
        if debug:
            _show_traceback()
        if _was_interrupted(error):
            _fail("stopped", "", STOPPED)
        if isinstance(error, ModuleNotFoundError) and error.name:
            error = _missing_package(error.name)
        if isinstance(error, UserError):
            if not is_main() and not isinstance(error, (DataError, OutOfMemory)):
                end(error.exit_code)  # every process meets it, and the main one reports it
            _fail(error.message, error.hint, error.exit_code)
        if is_out_of_memory(error):
            _fail("out of memory", "close other programs, or use smaller images or batches", 1)
        if isinstance(error, OSError) and error.filename:
            code = 2 if error.errno == errno.ENAMETOOLONG else 1
            _fail(f"{error.filename}: {error.strerror}", _hint_for(error), code)
        if debug:
            _fail(f"{type(error).__name__}: {error}", "", 1)
        bug = "this is a bug in hgkd-edge; rerun with --debug for the traceback"
        _fail(f"{type(error).__name__}: {error}", bug, 1)
    end(code if isinstance(code, int) else 0)


def _fail_usage(error: Any) -> NoReturn:
    """A command line that cannot be parsed; without any arguments, the help text."""
    message = error.format_message().rstrip(".")
    if message.startswith("Usage: "):
        typer.echo(message, err=True)
        end(2)
    hint = f"{error.ctx.command_path} --help" if error.ctx else ""
    _fail(message[:1].lower() + message[1:], hint, 2)


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether it is Ctrl-D, or a library's own error for Ctrl-C, as from a module's import."""
    while error is not None:
        if isinstance(error, (KeyboardInterrupt, typer.Abort)):  # Abort: Ctrl-D at a prompt
            return True
        error = error.__cause__ or error.__context__
    return False


def _fail(message: str, hint: str, code: int) -> NoReturn:
    """One line for what and where, one for the fix, on stderr; being stopped is no error."""
    where = "" if is_main() else f" in process {rank()}"
    typer.echo(
        _shown(message if code in {STOPPED, TERMINATED} else f"error{where}: {message}"),
        err=True,
    )
    if hint:
        typer.echo(_shown(f"hint: {hint}"), err=True)
    end(code)


def _shown(line: str) -> str:
    """A line for the terminal; of a long one, start and end: an argument may be of any length."""
    from hgkd_edge.console import printable

    line = printable(line)
    return line if len(line) <= MOST_SHOWN else f"{line[: MOST_SHOWN - 500]} ... {line[-400:]}"


def _show_traceback() -> None:
    """The traceback of the present error; what a model or a device reported may stand in it."""
    from hgkd_edge.console import printable

    for line in traceback.format_exc().splitlines():
        typer.echo(printable(line), err=True)


def _hint_for(error: OSError) -> str:
    from hgkd_edge.files import hint_for_write, is_cached

    file = Path(os.fsdecode(error.filename))
    met = file if os.path.exists(file) else file.parent
    if error.errno in {errno.EACCES, errno.EPERM} and not os.access(met, os.R_OK):
        return f"make it readable: ls -ld {shlex.quote(str(met))}"
    if error.errno in WRITING or is_cached(file):
        return hint_for_write(error.errno, file)
    return ""


def _missing_package(package: str) -> MissingPackageError:
    extras = {"openvino": "openvino", "polygraphy": "trt", "spconv": "spconv"}
    extra = extras.get(package.split(".")[0], "train")
    return MissingPackageError("this command", package=package, extra=extra)
