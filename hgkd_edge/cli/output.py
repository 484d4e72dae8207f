"""What every command prints with: the result on stdout, everything else on stderr."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import typer

from hgkd_edge.processes import is_main

if TYPE_CHECKING:
    from hgkd_edge.api.result import Result

__all__ = ["next_lines", "say", "say_error", "show", "show_result"]


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


def show_result(result: Result, as_json: bool, *following: str) -> None:
    """A result of the Python API on stdout; without `--json`, further lines follow it."""
    show(result.to_dict(), as_json, lambda: [*result.lines(), *following])


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


def next_lines(target: str, *commands: str) -> list[str]:
    """What to type next, one command a line: each for a run or a file, at `{}` or at its end."""
    quoted = shlex.quote(target)
    named = [one.replace("{}", quoted) if "{}" in one else f"{one} {quoted}" for one in commands]
    heads = ["next: ", *[" " * len("next: ")] * len(named)]
    return [f"{head}hgkd-edge {command}" for head, command in zip(heads, named, strict=False)]
