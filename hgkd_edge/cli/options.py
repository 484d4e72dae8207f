"""Options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hgkd_edge.errors import DataError

__all__ = [
    "AsJson",
    "Images",
    "Overrides",
    "RecipeName",
    "Run",
    "Runs",
    "TrustEngine",
    "require_only",
]

Run = Annotated[
    Path | None, typer.Argument(metavar="RUN", help="Run folder or name; default: the latest.")
]
Runs = Annotated[list[Path] | None, typer.Argument(metavar="RUN", help="Default: the latest run.")]
RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Recipe file, or name of a built-in one.")
]
Images = Annotated[
    list[Path], typer.Argument(metavar="IMAGES", help="Image files, or folders of them.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Override a key: train.epochs=10. Repeatable."
    ),
]
TrustEngine = Annotated[
    bool,
    typer.Option("--trust-engine", help="Load an engine that was not built on this machine."),
]


def require_only(context: typer.Context, where: str, *taken: str) -> None:
    """Refuse what was given on the command line and has no effect.

    Args:
        context: The call of a command.
        where: Its form, such as `with --compare`.
        taken: Names of the parameters that have an effect in this form.

    Raises:
        DataError: Names the options.
    """
    given = [
        "/".join([*one.opts[:1], *one.secondary_opts[:1]])
        for one in context.command.params
        if one.name not in taken and _is_given(context, str(one.name))
    ]
    if given:
        raise DataError(f"{', '.join(given)}: no effect {where}", hint=f"remove {', '.join(given)}")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
