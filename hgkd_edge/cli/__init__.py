"""The command line: a file per verb. Parse, call, print; nothing heavy is imported at start."""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

from hgkd_edge.cli import (
    bench,
    compare,
    data,
    demo,
    devices,
    distill,
    doctor,
    embed,
    evaluate,
    export,
    finetune,
    predict,
    pretrain,
    recipes,
    report,
)
from hgkd_edge.cli.failures import run_app
from hgkd_edge.cli.help import Command

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's help panels would double the time that --help takes
    help="Distill a Vision Transformer into a small dense CNN; export, verify and measure it.",
    epilog="Start with: hgkd-edge demo",
)
# In the order of --help.
for command in (
    distill.distill,
    pretrain.pretrain,
    finetune.finetune,
    evaluate.evaluate,
    predict.predict,
    embed.embed,
    demo.demo,
    report.report,
    doctor.doctor,
    data.data,
    export.export,
    bench.bench,
    compare.compare,
    devices.devices,
):
    app.command(cls=Command)(command)
app.add_typer(recipes.app, name="recipes")


def _print_version(asked: bool) -> None:
    if asked:
        from hgkd_edge import __version__

        typer.echo(f"hgkd-edge {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Options of every command; `--debug` is taken out of the arguments by `main`."""


def main() -> NoReturn:
    """Entry point."""
    # Usage errors too are printed as ours, under one name also with `python -m hgkd_edge`.
    run_app(lambda: app(standalone_mode=False, prog_name="hgkd-edge"))
