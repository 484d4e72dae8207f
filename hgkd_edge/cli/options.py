"""Options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["AsJson", "Images", "Overrides", "RecipeName", "Run", "Runs", "TrustEngine"]

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
