"""The commands `recipes list`, `show`, `validate`, `new` and `schema`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hgkd_edge.cli.help import Command
from hgkd_edge.cli.options import AsJson, Overrides, RecipeName
from hgkd_edge.cli.output import next_lines, show

if TYPE_CHECKING:
    from hgkd_edge.distillation.parts import Parts

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="List, show, write and validate recipes."
)


@app.command("list", cls=Command)
def list_recipes(as_json: AsJson = False) -> None:
    """List the built-in recipes.

    Example: hgkd-edge recipes list
    """
    from hgkd_edge.recipe import builtin_recipes, recipe_summary

    found = {name: recipe_summary(path) for name, path in builtin_recipes().items()}
    show(found, as_json, lambda: [_table(found)])


@app.command("show", cls=Command)
def show_recipe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a built-in recipe.")],
) -> None:
    """Print a built-in recipe to start your own from.

    Example: hgkd-edge recipes show demo > my-recipe.yaml
    """
    from hgkd_edge.console import printable
    from hgkd_edge.recipe import find_recipe
    from hgkd_edge.yaml_settings import settings_text

    lines = re.split("\r\n|\r|\n", settings_text(find_recipe(name)))
    typer.echo("\n".join(map(printable, lines)), nl=False)


@app.command("validate", cls=Command)
def validate(
    recipe: RecipeName,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Check a recipe and its networks, without training.

    Nothing is downloaded.

    Example: hgkd-edge recipes validate my-recipe.yaml
    """
    from hgkd_edge.data.presence import require_data
    from hgkd_edge.recipe import find_recipe, load_recipe

    path = find_recipe(recipe)
    loaded = load_recipe(path, overrides or ())
    require_data(loaded.data)
    from hgkd_edge.distillation.parts import build

    parts = build(loaded, download=False)
    result = {
        "recipe": str(path),
        "image_size": parts.spec.size,
        "mask_grid": parts.mask_grid,
        "mask_patch": parts.mask_patch,
        "token_grid": parts.token_grid,
        "teacher_size": parts.teacher_size,
    }
    show(result, as_json, lambda: [f"{path}: valid", *_grid_lines(parts)])


@app.command("schema", cls=Command)
def schema() -> None:
    """Print the JSON schema of recipes, for editors.

    Example: hgkd-edge recipes schema > recipe.schema.json
    """
    from hgkd_edge.recipe_reference import recipe_schema

    typer.echo(json.dumps(recipe_schema(), indent=2))


ImagesPath = Annotated[
    str | None, typer.Option(metavar="PATH", help="Folder of images, or what data.path takes.")
]
Count = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Number of images [default: counted in a folder or CSV file]."
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="classify, multilabel, segment or detect [default: classify]."
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="AMOUNT", help="Labels per class: none, one, few (ten) or many [default: none]."
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Name of hgkd-edge devices; cpu or phone [default: orin-nano-8]."
    ),
]
Teacher = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="A timm name, or own: trained on your images [default: by device]."
    ),
]
Hidden = Annotated[
    bool | None, typer.Option("--hidden/--visible", help="Objects are often partly hidden.")
]
Source = Annotated[str, typer.Option(metavar="KIND", help="folder, webdataset or hf.")]
File = Annotated[Path, typer.Option(metavar="FILE", help="File to write.")]


@app.command("new", cls=Command)
def new_recipe(
    images: ImagesPath = None,
    count: Count = None,
    task: Task = None,
    labels: Labels = None,
    device: Device = None,
    teacher: Teacher = None,
    hidden: Hidden = None,
    source: Source = "folder",
    out: File = Path("recipe.yaml"),
    as_json: AsJson = False,
) -> None:
    """Write a recipe for your images and device.

    On a terminal it asks for what no option gives.

    Example: hgkd-edge recipes new --images photos --labels few
    """
    from hgkd_edge.recommend import Wish, write_recipe

    ask = sys.stdin.isatty() and not as_json
    given: dict[str, Any] = {
        "task": task,
        "labels": labels,
        "device": device,
        "teacher": teacher,
        "hidden": hidden,
    }
    path, counted = _images_and_count(images, count, source, ask=ask)
    if ask:
        given |= {key: _ask(key) for key, value in given.items() if value is None}
    chosen = {key: value for key, value in given.items() if value is not None}
    wish = Wish(path, *counted, source=source, **chosen)
    schema = write_recipe(wish, out)
    result = {"recipe": str(out), "schema": str(schema)}
    lines = [f"recipe: {out}", f"JSON schema for editors: {schema}"]
    show(result, as_json, lambda: [*lines, *next_lines(str(out), "recipes validate", "distill")])


QUESTIONS: dict[str, tuple[str, Any]] = {
    "task": ("Task: classify, multilabel, segment or detect", "classify"),
    "labels": ("Labels per class: none, one, few (about ten) or many", "none"),
    "device": ("Device: a name of 'hgkd-edge devices', cpu or phone", "orin-nano-8"),
    "teacher": ("Teacher: default, own (trained on the images), or a timm name", "default"),
    "hidden": ("Are the objects often partly hidden?", False),
}


def _ask(key: str) -> Any:
    question, default = QUESTIONS[key]
    if default is False:
        return typer.confirm(question, default=default, err=True)
    return typer.prompt(question, default=default, err=True)


def _images_and_count(
    images: str | None, count: int | None, source: str, *, ask: bool
) -> tuple[str, tuple[int, int]]:
    """`data.path`, and number and size of the images, asked for if nothing else gives them."""
    from hgkd_edge.errors import DataError
    from hgkd_edge.recommend import count_images, is_countable_table

    if images is None:
        if not ask:
            raise DataError("--images is required without a terminal", hint="--images FOLDER")
        images = str(typer.prompt("Folder of images (or what data.path takes)", err=True))
    path = Path(images)
    if source == "folder" and (path.is_dir() or is_countable_table(path)):
        found, side = count_images(path)
        return images, (count or found, side)
    if count is None and not ask:
        raise DataError(f"{images}: its images cannot be counted", hint="--count NUMBER")
    count = count or typer.prompt("Number of images", type=int, err=True)
    if count < 1:
        raise DataError(f"number of images {count} is not above 0", hint="--count NUMBER")
    return images, (count, 0)


def _table(found: dict[str, str]) -> Any:
    """Names of recipes, and what each gives and costs."""
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    for name, text in found.items():
        table.add_row(name, text)
    return table


def _grid_lines(parts: Parts) -> list[str]:
    """The sizes on which student and teacher meet."""
    grids = (parts.mask_grid, parts.token_grid, parts.teacher_size)
    mask, tokens, seen = (f"{height}x{width}" for height, width in grids)
    return [
        f"  mask: {mask} patches of {parts.mask_patch} px",
        f"  tokens: {tokens}, the teacher sees {seen} px",
    ]
