"""The commands `recipes list`, `recipes show` and `recipes validate`."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from hgkd_edge.cli.options import AsJson, Overrides, RecipeName
from hgkd_edge.cli.output import show

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="List, show and validate recipes."
)


@app.command("list")
def list_recipes(as_json: AsJson = False) -> None:
    """List the built-in recipes.

    Example: hgkd-edge recipes list
    """
    from hgkd_edge.recipe import builtin_recipes, recipe_summary

    found = {name: recipe_summary(path) for name, path in builtin_recipes().items()}
    show(found, as_json, lambda: [_table(found)])


@app.command("show")
def show_recipe(name: Annotated[str, typer.Argument(help="Name of a built-in recipe.")]) -> None:
    """Print a built-in recipe to start your own from.

    Example: hgkd-edge recipes show demo > my-recipe.yaml
    """
    from hgkd_edge.console import printable
    from hgkd_edge.recipe import find_recipe
    from hgkd_edge.settings import settings_text

    lines = re.split("\r\n|\r|\n", settings_text(find_recipe(name)))
    typer.echo("\n".join(map(printable, lines)), nl=False)


@app.command("validate")
def validate(
    recipe: RecipeName,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Check a recipe and its networks, without training.

    Nothing is downloaded.

    Example: hgkd-edge recipes validate my-recipe.yaml
    """
    from hgkd_edge.recipe import find_recipe, load_recipe

    path = find_recipe(recipe)
    loaded = load_recipe(path, overrides or ())
    from hgkd_edge.data.sources import require_data
    from hgkd_edge.distillation.parts import build

    parts = build(loaded, download=False)
    require_data(loaded.data)
    result = {
        "recipe": str(path),
        "image_size": parts.spec.size,
        "mask_grid": parts.mask_grid,
        "mask_patch": parts.mask_patch,
        "token_grid": parts.token_grid,
        "teacher_size": parts.teacher_size,
    }
    show(result, as_json, lambda: [f"{path}: valid", *_grid_lines(result)])


def _table(found: dict[str, str]) -> Any:
    """Names of recipes, and what each gives and costs."""
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    for name, text in found.items():
        table.add_row(name, text)
    return table


def _grid_lines(result: dict[str, Any]) -> list[str]:
    """The sizes on which student and teacher meet."""
    mask, tokens = result["mask_grid"], result["token_grid"]
    return [
        f"  mask: {mask[0]}x{mask[1]} patches of {result['mask_patch']} px",
        f"  tokens: {tokens[0]}x{tokens[1]}, the teacher sees {result['teacher_size']}",
    ]
