"""The command line's reference: every command, argument and option, as `--help` knows them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from hgkd_edge.cli import app
from hgkd_edge.cli.help import help_rows
from reference.markdown import code, table

INTRODUCTION = """# Command line

Every command and option, from the same definitions as `hgkd-edge COMMAND --help`.

- `RUN` is a run folder. Without it, a command takes the latest run.
- `--json` prints the result on standard output as JSON. Everything else goes to standard error.
- `hgkd-edge --debug COMMAND ...` shows the traceback of an error.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed while working |
| 2 | bad input or usage: one line says what is wrong and where, a hint says how to fix it |
| 130 | stopped by Ctrl-C or SIGTERM |

"""


def page() -> str:
    """The page as Markdown."""
    group = typer.main.get_command(app)
    context = group.make_context("hgkd-edge", [], resilient_parsing=True)
    return INTRODUCTION + "\n".join(_command(*found) for found in _commands(group, context))


def _commands(group: Any, context: Any) -> Iterator[tuple[Any, Any]]:
    """All commands below a group, with their contexts, in the order of --help."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inside = type(context)(command, info_name=name, parent=context)
        if hasattr(command, "list_commands"):
            yield from _commands(command, inside)
        else:
            yield command, inside


def _command(command: Any, context: Any) -> str:
    text = re.sub(r"^Example: (.*)$", r"Example: `\1`", command.help or "", flags=re.MULTILINE)
    parts = [f"## {context.command_path}\n", f"{text}\n"]
    parts.append(f"```\n{' '.join(command.get_usage(context).split())}\n```\n")
    for kind in ("argument", "option"):
        rows = [(code(names), text) for names, text in help_rows(command, context, kind)]
        if rows:
            parts.append(table((kind, "meaning"), rows))
    return "\n".join(parts)
