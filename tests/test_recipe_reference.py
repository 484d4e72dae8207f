"""The JSON schema for editors and the key tables of docs/recipe.md agree with the recipe models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from hgkd_edge.errors import RecipeError
from hgkd_edge.recipe import builtin_recipes, load_recipe
from hgkd_edge.recipe_reference import key_tables, recipe_schema, with_key_tables

PAGE = Path(__file__).parent.parent / "docs" / "recipe.md"


def valid(recipe: Any) -> bool:
    return jsonschema.Draft202012Validator(recipe_schema()).is_valid(recipe)


@pytest.mark.parametrize("file", builtin_recipes().values(), ids=lambda file: file.stem)
def test_every_recipe_that_loads_is_valid_by_the_schema(file: Path) -> None:
    written = yaml.safe_load(file.read_text(encoding="utf-8"))
    resolved = load_recipe(file).model_dump(mode="json")

    assert valid(written)
    assert valid(resolved)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "epoch", 3),
        ("train", "epochs", 0),
        ("train", "optimizer", "sgd"),
        ("data", "image_size", [64]),
        ("teacher", "pretrain", {"objective": "dino"}),
        ("mask", "ratio", 1),
    ],
)
def test_what_a_recipe_refuses_the_schema_refuses(
    tiny_recipe: dict[str, Any], tmp_path: Path, section: str, key: str, value: Any
) -> None:
    assert valid(tiny_recipe)
    tiny_recipe.setdefault(section, {})[key] = value
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(tiny_recipe))

    assert not valid(tiny_recipe)
    with pytest.raises(RecipeError, match=key):
        load_recipe(file)


def test_every_key_has_a_description_in_the_schema() -> None:
    schema = recipe_schema()

    for part in (schema, *schema["$defs"].values()):
        for key, entry in part["properties"].items():
            assert entry["description"].endswith("."), key
            assert "title" not in entry


def test_the_page_has_every_table_as_the_models_give_it() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert with_key_tables(page) == page, "python -m hgkd_edge.recipe_reference docs/recipe.md"
    assert all(table in page for table in key_tables().values())


def test_a_table_that_was_changed_by_hand_is_noticed() -> None:
    page = PAGE.read_text(encoding="utf-8")

    changed = page.replace("One epoch is one pass over the images.", "")

    assert changed != page
    assert with_key_tables(changed) == page
