"""Strict YAML settings: errors name the key and suggest a fix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeGuard, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from hgkd_edge.cells import counted
from hgkd_edge.console import warn
from hgkd_edge.errors import RecipeError, reason_of
from hgkd_edge.parsing import (
    MAX_SETTINGS_BYTES,
    brief,
    cut,
    parse_yaml,
    read_text,
    yaml_fault,
)

__all__ = [
    "Section",
    "differing_keys",
    "is_section",
    "parse_settings",
    "read_settings",
    "settings_text",
]

MAX_PROBLEMS = 20  # reported at once for one file
SectionType = TypeVar("SectionType", bound="Section")


class Section(BaseModel):
    """Settings that refuse unknown keys, NaN and infinity.

    Attributes:
        renamed: Earlier name -> today's name of keys that were renamed. Earlier names are accepted
            with a warning.
        removed: Earlier keys that are ignored, and the value that they had by default; another one
            gives a warning. Runs of earlier versions hold them.
    """

    renamed: ClassVar[Mapping[str, str]] = {}
    removed: ClassVar[Mapping[str, object]] = {}

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
        for key, default in cls.removed.items():
            if raw.get(key, default) != default:
                warn(f"the key '{key}' was removed and has no effect")
        return {key: value for key, value in raw.items() if key not in cls.removed}


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
        messages = [problem.located(overrides, name) for problem in problems]
        if len(found) > MAX_PROBLEMS:
            messages.append(f"{name}: and {counted(len(found) - MAX_PROBLEMS, 'more problem')}")
        fixes = filter(None, (problem.fix(overrides) for problem in problems))
        raise RecipeError("; ".join(messages), hint=" ".join(fixes)) from error


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


class _Problem(NamedTuple):
    """One wrong key or value.

    Attributes:
        key: Its dotted key.
        text: What is wrong.
        where: Key and value, as `key = value: `; '' if the text names them.
        meant_key: The key that was probably meant; '' if unknown.
        meant_value: The value that was probably meant; '' if unknown.
    """

    key: str
    text: str
    where: str = ""
    meant_key: str = ""
    meant_value: str = ""

    def located(self, overrides: Sequence[str], name: str) -> str:
        """The problem in one line, with the override or the file that it is in."""
        if override := self._override(overrides):
            exactly = override.partition("=")[0].strip() == self.key
            return f"--set {cut(override)}: {'' if exactly else self.where}{self.text}"
        return f"{name}: {self.where}{self.text}"

    def fix(self, overrides: Sequence[str]) -> str:
        """The override that was probably meant; '' if there is none, or it sets a whole section."""
        key, _, value = self._override(overrides).partition("=")
        itself = f"{key.strip()}.".startswith(f"{self.key}.")
        if not itself or not (self.meant_key or self.meant_value):
            return ""
        rest = key.removeprefix(self.key) if self.meant_key else ""
        return f"--set {self.meant_key or key}{rest}={self.meant_value or value}"

    def _override(self, overrides: Sequence[str]) -> str:
        """The last override that made this problem; '' if the file did, or that is unknown."""
        for override in reversed(overrides):
            key = override.partition("=")[0].strip()
            within = f"{key}.".startswith(f"{self.key}.") and not self.where  # of an unknown key
            if within or f"{self.key}.".startswith(f"{key}."):
                return override
        return ""


def _one_per_key(problems: Iterable[Any], model: type[BaseModel]) -> list[_Problem]:
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
        in_section = is_section(model)
        if in_section or isinstance(part, int):
            kept.append(part)
        if isinstance(part, int):
            model = next(iter(get_args(model)), None)
        else:
            field = model.model_fields.get(part) if in_section else None
            model = _if_given(field.annotation) if field else None
    return kept


def _telling(problem: Any) -> tuple[bool, int]:
    """A value of the right type but out of range is more specific than one of another type."""
    of_another_type = problem["type"].endswith(("_type", "_parsing", "literal_error"))
    return not of_another_type, len(problem["loc"])


def _describe(problem: Any, model: type[BaseModel]) -> _Problem:
    """What a problem of pydantic means."""
    location = [str(part) for part in problem["loc"]]
    key, message = ".".join(location), problem["msg"].removeprefix("Value error, ")
    message = re.sub("^Input should ", "must ", message)
    if problem["type"] == "extra_forbidden":
        valid = list(_keys_of(model, location[:-1]))
        nearest = _nearest_key(location, valid, model)
        fix = f"did you mean '{nearest}'?" if nearest else f"valid: {', '.join(valid)}"
        return _Problem(key, f"unknown key '{cut(key)}' ({fix})", meant_key=nearest)
    if problem["type"] == "missing":
        return _Problem(key, f"'{key}' is required")
    value, meant = problem["input"], ""
    shown = "" if isinstance(value, (dict, BaseModel)) else f" = {brief(value)}"
    if problem["type"] == "model_type":
        keys = list(_keys_of(model, location)) if key else list(model.model_fields)
        message = f"must be a section with the keys {', '.join(keys)}"
    if problem["type"] == "literal_error":
        expected = problem["ctx"]["expected"]
        known = re.findall(r"'([^']*)'", expected)
        meant = next(iter(difflib.get_close_matches(brief(value), known, n=1)), "")
        message = f"must be {expected}" + (f" (did you mean '{meant}'?)" if meant else "")
    where = f"{cut(key)}{shown}: " if key else ""
    return _Problem(key, message, where, meant_value=meant)


def _nearest_key(location: Sequence[str], valid: Sequence[str], model: type[BaseModel]) -> str:
    """The dotted key that was probably meant: in the same section, else of that name elsewhere."""
    *section, leaf = location
    if near := difflib.get_close_matches(cut(leaf), valid, n=1):
        return ".".join([*section, near[0]])
    elsewhere = [key for key in _dotted_keys(model) if key.rpartition(".")[2] == leaf]
    elsewhere.sort(key=lambda key: key.count("."))
    return elsewhere[0] if elsewhere else ""


def is_section(kind: Any) -> TypeGuard[type[Section]]:
    """Whether a key's type is a section. On Python 3.10, `list[int]` is an instance of `type`."""
    return isinstance(kind, type) and get_origin(kind) is None and issubclass(kind, Section)


def _if_given(kind: Any) -> Any:
    """An optional section's type (`QatConfig | None`) where it is given; others as they are."""
    return next(filter(is_section, get_args(kind)), kind) if type(None) in get_args(kind) else kind


def _dotted_keys(model: Any, prefix: str = "") -> Iterator[str]:
    """Every key of a section and of the sections in it."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for kind in (field.annotation, *get_args(field.annotation)):
            if is_section(kind):
                yield from _dotted_keys(kind, f"{prefix}{name}.")


def _keys_of(model: Any, section: Sequence[str]) -> Iterator[str]:
    """Valid keys of a section such as ['train'] or ['hosts', '0'] (the model's own for [])."""
    for name in section:
        kind = get_args(model)[0] if name.isdigit() else model.model_fields[name].annotation
        model = _if_given(kind)
    yield from model.model_fields
