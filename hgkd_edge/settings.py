"""Strict YAML settings: errors name the key and suggest a fix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from hgkd_edge.console import warn
from hgkd_edge.errors import RecipeError, reason_of
from hgkd_edge.parsing import MAX_SETTINGS_BYTES, brief, cut, parse_yaml, read_text, yaml_fault

__all__ = ["Section", "differing_keys", "parse_settings", "read_settings", "settings_text"]

MAX_PROBLEMS = 20  # reported at once for one file
SectionType = TypeVar("SectionType", bound="Section")


class Section(BaseModel):
    """Settings that refuse unknown keys, NaN and infinity.

    Attributes:
        renamed: Earlier name -> today's name of keys that were renamed. Earlier names are accepted
            with a warning.
    """

    renamed: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _todays_names(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        for before, now in cls.renamed.items():
            if before in raw and now not in raw:
                warn(f"the key '{before}' is now named '{now}'")
                raw = {now if key == before else key: value for key, value in raw.items()}
        return raw


def read_settings(path: Path) -> dict[str, object]:
    """A YAML file that holds a mapping.

    Raises:
        RecipeError: It cannot be read, or is not one.
    """
    text = settings_text(path)
    try:
        raw = parse_yaml(text)
    except ValueError as error:
        raise RecipeError(f"{path}: {error}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: {yaml_fault(error)}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: must be a mapping of sections (name, data, teacher, ...)")
    return raw


def settings_text(path: Path) -> str:
    """The text of a file of settings.

    Raises:
        RecipeError: It cannot be read, is not text, or is too large.
    """
    try:
        return read_text(path, MAX_SETTINGS_BYTES)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        hint = "save it as UTF-8" if "UTF-8" in str(error) else ""
        raise RecipeError(f"{path}: {error}", hint=hint) from error


def parse_settings(
    model: type[SectionType], raw: dict[str, object], overrides: Sequence[str] = (), *, name: str
) -> SectionType:
    """Validate nested settings after applying `a.b=c` overrides to them.

    Args:
        model: What they should be.
        raw: As read; modified by the overrides.
        overrides: Later ones win.
        name: File or command that the settings come from, for the error message.

    Raises:
        RecipeError: One line, all problems together: name, key, value, nearest key.
    """
    for override in overrides:
        _apply_override(raw, override)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        found = error.errors()
        problems = _one_per_key(found[:MAX_PROBLEMS], model)
        if len(found) > MAX_PROBLEMS:
            problems.append(f"and {len(found) - MAX_PROBLEMS} more problems")
        raise RecipeError("; ".join(f"{name}: {problem}" for problem in problems)) from error


def differing_keys(a: Any, b: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys at which two nested mappings differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            yield from differing_keys(a.get(key), b.get(key), f"{prefix}.{key}".lstrip("."))
    elif a != b:
        yield prefix


def _apply_override(raw: dict[str, object], override: str) -> None:
    key, equals, value = override.partition("=")
    shown = cut(override)
    if not equals or not key:
        raise RecipeError(f"--set {shown}: must be KEY=VALUE, such as train.epochs=10")
    *parents, leaf = key.strip().split(".")
    node = raw
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise RecipeError(f"--set {shown}: '{cut(parent)}' is a value, not a section")
        node = child
    try:
        node[leaf] = parse_yaml(value)
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(
            f"--set {shown}: the value is not valid YAML: {reason_of(error)}"
        ) from error


def _one_per_key(problems: Iterable[Any], model: type[BaseModel]) -> list[str]:
    """Pydantic's problems; for a value of several possible types, the most specific one."""
    by_key: dict[str, list[Any]] = {}
    for problem in problems:
        location = _without_types(problem["loc"], model)
        field = ".".join(part for part in location if isinstance(part, str))
        by_key.setdefault(field, []).append({**problem, "loc": location})
    return [_describe(max(same, key=_telling), model) for same in by_key.values()]


def _without_types(location: Sequence[Any], model: Any) -> list[Any]:
    """A problem's location without the names that pydantic gives to a union's types."""
    kept = []
    for part in location:
        in_section = isinstance(model, type) and issubclass(model, BaseModel)
        if in_section or isinstance(part, int):
            kept.append(part)
        if isinstance(part, int):
            model = next(iter(get_args(model)), None)
        else:
            field = model.model_fields.get(part) if in_section else None
            model = field.annotation if field else None
    return kept


def _telling(problem: Any) -> tuple[bool, int]:
    """A value of the right type but out of range is more specific than one of another type."""
    of_another_type = problem["type"].endswith(("_type", "_parsing", "literal_error"))
    return not of_another_type, len(problem["loc"])


def _describe(problem: Any, model: type[BaseModel]) -> str:
    """One pydantic problem as `key = value: what is wrong`."""
    location = [str(part) for part in problem["loc"]]
    key, message = cut(".".join(location)), problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        valid = list(_keys_of(model, location[:-1]))
        nearest = difflib.get_close_matches(cut(location[-1]), valid, n=1, cutoff=0.4)
        fix = f"did you mean '{nearest[0]}'?" if nearest else f"valid: {', '.join(valid)}"
        return f"unknown key '{key}' ({fix})"
    if problem["type"] == "missing":
        return f"'{key}' is required"
    value = problem["input"]
    shown = "" if isinstance(value, (dict, BaseModel)) else f" = {brief(value)}"
    if problem["type"] == "literal_error":
        expected = problem["ctx"]["expected"]
        nearest = difflib.get_close_matches(brief(value), re.findall(r"'([^']*)'", expected), n=1)
        message = f"must be {expected}" + (f" (did you mean '{nearest[0]}'?)" if nearest else "")
    return f"{key}{shown}: {message}" if key else message


def _keys_of(model: Any, section: Sequence[str]) -> Iterator[str]:
    """Valid keys of a section such as ['train'] or ['hosts', '0'] (the model's own for [])."""
    for name in section:
        model = get_args(model)[0] if name.isdigit() else model.model_fields[name].annotation
    yield from model.model_fields
