"""What every command prints with: the result on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from hgkd_edge.processes import is_main

if TYPE_CHECKING:
    from hgkd_edge.rundir import RunDir

__all__ = ["announce", "at_work", "next_line", "say", "say_error", "show"]


def show(result: Any, as_json: bool, lines: Callable[[], Iterable[Any]]) -> None:
    """The result on stdout: as JSON, or as lines and tables."""
    if not is_main():
        return
    if as_json:
        typer.echo(json.dumps(result, indent=2, default=str))
        return
    from rich.text import Text

    from hgkd_edge.console import make_console

    out = make_console()
    for line in lines():
        out.print(line, soft_wrap=isinstance(line, (str, Text)))


def say(line: str) -> None:
    """A line for people, on stderr."""
    if is_main():
        from hgkd_edge.console import printable

        typer.echo(printable(line), err=True)


def say_error(message: str, hint: str) -> None:
    """An error that does not end the command at once: one line, and one for the fix."""
    say(f"error: {message}")
    if hint:
        say(f"hint: {hint}")


def next_line(run: str, *commands: str) -> str:
    """What to type next, each command with the run that it is for."""
    quoted = shlex.quote(run)
    named = [c.format(run=quoted) if "{run}" in c else f"{c} {quoted}" for c in commands]
    return "next: " + ", ".join(f"hgkd-edge {command}" for command in named)


def announce(folder: RunDir, because: str = "") -> None:
    """Name the run folder, and why it is this one."""
    say(f"run folder: {folder.path}" + (f" ({because})" if because else ""))


@contextlib.contextmanager
def at_work(folder: RunDir) -> Iterator[None]:
    """Train in a folder, as `RunDir.at_work`; the main process sees to it.

    SIGTERM, as schedulers and torchrun send it, cleans up as Ctrl-C does.
    """

    def terminate(number: int, frame: Any) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        with folder.at_work() if is_main() else contextlib.nullcontext():
            yield
    finally:
        signal.signal(signal.SIGTERM, previous)
