"""The recipe's JSON schema for editors, and the key tables of docs/recipe.md. Made from the models.

A key's description is the text under it in the model's source:

    epochs: Positive = 100
    \"\"\"One epoch is one pass over the images.\"\"\"

`python -m hgkd_edge.recipe_reference docs/recipe.md` writes the tables of that page again.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from hgkd_edge.files import atomic_write
from hgkd_edge.recipe import Recipe
from hgkd_edge.yaml_settings import Section, is_section

__all__ = ["descriptions", "key_tables", "recipe_schema", "with_key_tables"]

# In the page: <!-- keys: train --> table <!-- end of keys -->
_TABLE = re.compile(r"(?<=<!-- keys: )([\w.]+)( -->\n).*?(?=<!-- end of keys -->)", re.S)


def recipe_schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of a recipe, with a description of every key."""
    schema = Recipe.model_json_schema()
    models = {model.__name__: model for model in _sections(Recipe).values()}
    for name, part in {**schema["$defs"], Recipe.__name__: schema}.items():
        texts = descriptions(models[name])
        part["description"] = inspect.cleandoc(models[name].__doc__ or "")
        for key, entry in part["properties"].items():
            entry["description"] = texts[key]
            entry.pop("title", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


@functools.cache
def descriptions(model: type[Section]) -> Mapping[str, str]:
    """The text under each key of a model's source, in one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for key, text in pairwise(body.body):
        if isinstance(key, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(key.target, ast.Name)
            found[key.target.id] = " ".join(ast.literal_eval(text.value).split())
    return found


def key_tables() -> dict[str, str]:
    """Section, such as `teacher.pretrain` ('recipe': the top level) -> a table of its keys."""
    schema = recipe_schema()
    tables = {}
    for name, model in _sections(Recipe).items():
        part = schema if model is Recipe else schema["$defs"][model.__name__]
        rows = ["| key | values | default | meaning |", "|---|---|---|---|"]
        required = part.get("required", ())
        for key, entry in part["properties"].items():
            if "$ref" in entry:
                continue  # a section, which has its own table
            unset: Any = {} if entry.get("type") == "object" else None  # of a default factory
            default = "required" if key in required else _shown(entry.get("default", unset))
            cells = (f"`{key}`", _values(entry), default, entry["description"])
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        tables[name] = "\n".join(rows) + "\n"
    return tables


def with_key_tables(page: str) -> str:
    """A page with its key tables made again from the models."""
    tables = key_tables()
    return _TABLE.sub(lambda mark: f"{mark[1]}{mark[2]}\n{tables[mark[1]]}\n", page)


def _sections(model: type[Section], name: str = "") -> dict[str, type[Section]]:
    """Every section by its dotted name, the recipe itself first."""
    found = {name or "recipe": model}
    for key, field in model.model_fields.items():
        inner = field.annotation
        if is_section(inner):
            found |= _sections(inner, f"{name}.{key}".lstrip("."))
    return found


def _values(entry: Mapping[str, Any]) -> str:
    """The values that a key takes, in words."""
    if "anyOf" in entry:
        kinds = [_values(kind) for kind in entry["anyOf"] if kind.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "const" in entry:
        return _shown(entry["const"])
    if "enum" in entry:
        return ", ".join(map(_shown, entry["enum"]))
    kind = entry.get("type")
    if kind in ("integer", "number"):
        word = "whole number" if kind == "integer" else "number"
        return f"{word} {' and '.join(_bounds(entry))}".strip()
    if kind == "array":
        if "prefixItems" in entry:
            return f"[{', '.join(map(_values, entry['prefixItems']))}]"
        return f"list of {_values(entry['items'])}".replace("number", "numbers")
    words = {"boolean": "true, false", "object": "mapping", "string": "text"}
    return "path" if entry.get("format") == "path" else words[str(kind)]


def _bounds(entry: Mapping[str, Any]) -> Iterator[str]:
    signs = {
        "exclusiveMinimum": "above",
        "minimum": "at least",
        "exclusiveMaximum": "below",
        "maximum": "at most",
        "multipleOf": "multiple of",
    }
    yield from (f"{word} {_shown(entry[sign])}" for sign, word in signs.items() if sign in entry)


def _shown(value: Any) -> str:
    """A value as YAML would show it; empty for none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"`{value}`"
    if isinstance(value, (list, tuple)):
        return f"`[{', '.join(_shown(one).strip('`') for one in value)}]`"
    if isinstance(value, dict):
        return f"`{json.dumps(value)}`"
    return str(value) if isinstance(value, int) else f"{value:g}"


if __name__ == "__main__":
    file = Path(sys.argv[1])
    with atomic_write(file) as temporary:
        temporary.write_text(with_key_tables(file.read_text(encoding="utf-8")), encoding="utf-8")
