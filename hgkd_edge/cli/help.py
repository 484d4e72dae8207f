"""The class of commands: empty values are errors; help and end are alike with every Typer."""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.core import TyperCommand

__all__ = ["Command", "help_rows"]


class Command(TyperCommand):
    """A command whose help shows arguments by name: Typer adds `<list[Path]>` or braces."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line. An empty value, as of an unset shell variable, is an error.

        Otherwise it would be the default value, or as a path the current folder.
        """
        if not ctx.resilient_parsing:
            given = self.make_parser(ctx).parse_args(list(args))[0]
            if given.get("help"):
                return super().parse_args(ctx, args)
            params: list[Any] = list(self.get_params(ctx))
            for param in params:
                value = given.get(param.name)
                if value == "" or (isinstance(value, (list, tuple)) and "" in value):
                    raise typer.BadParameter("it is empty", ctx=ctx, param=param)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Ctrl-C is passed on as `Abort`: Typer would end without a message."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            raise typer.Abort from stopped

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The parts of the usage line."""
        return [re.sub("[{}]", "", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections of arguments and options."""
        for kind in ("argument", "option"):
            if rows := help_rows(self, ctx, kind):
                with formatter.section(f"{kind.title()}s"):
                    formatter.write_dl(rows)


def help_rows(command: Any, ctx: Any, kind: str) -> list[tuple[str, str]]:
    """Names and meaning of a command's arguments or options.

    Args:
        command: A command of Typer.
        ctx: Its context.
        kind: `argument` or `option`.
    """
    params = [one for one in command.get_params(ctx) if one.param_type_name == kind]
    rows = [row for one in params if (row := one.get_help_record(ctx)) is not None]
    if kind == "option":
        return rows
    return [(re.sub(r" <.*>$", "", names), text) for names, text in rows]
