"""The reference of `bench.json`, from the models that read and write it."""

from __future__ import annotations

import inspect
import re
from typing import Any

from pydantic import BaseModel

from hgkd_edge.bench import records
from reference.markdown import code, table

INTRODUCTION = """# bench.json

What `hgkd-edge bench` writes (`hgkd_edge/bench/records.py`). The file has one session per target.
Measuring a target
again replaces its session. Times are in ms, sizes in MiB, power in W, unless a name says otherwise.

Unknown keys are refused. A file of another schema version is refused and never overwritten.
Estimates
(`bench --estimate`) are written to `bench-estimate.json`, never to this file.

`hgkd-edge bench --json` prints `{"file", "sessions", "refusals"}` on standard output.

"""


def page() -> str:
    """The page as Markdown: one table for each kind of record, from the file inward."""
    return INTRODUCTION + "\n".join(map(_section, _reached(records.BenchFile, [])))


def _reached(record: type[BaseModel], found: list[type[BaseModel]]) -> list[type[BaseModel]]:
    """The record and all records inside it, each once, outer ones first."""
    if record not in found:
        found.append(record)
        for field in record.model_fields.values():
            for inside in _records_in(field.annotation):
                _reached(inside, found)
    return found


def _records_in(annotation: Any) -> list[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    parts = getattr(annotation, "__args__", ())
    return [record for part in parts for record in _records_in(part)]


def _section(record: type[BaseModel]) -> str:
    rows = []
    for name, field in record.model_fields.items():
        required = "" if field.is_required() else code(_default(field))
        rows.append((code(field.alias or name), _type(field.annotation), required))
    purpose = inspect.cleandoc(record.__doc__ or "")
    return f"## {record.__name__}\n\n{purpose}\n\n{table(('key', 'type', 'default'), rows)}"


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    return "null" if value is None else repr(value)


def _type(annotation: Any) -> str:
    """A type with links to the records in it."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    inside = _records_in(annotation)
    text = (
        annotation.__name__
        if inspect.isclass(annotation) and not getattr(annotation, "__args__", ())
        else str(annotation)
    )
    text = re.sub(r"\b(typing|builtins|hgkd_edge\.bench\.records)\.", "", text)
    text = text.replace("None", "null").replace("NoneType", "null")
    if not inside:
        return code(text)
    # Markdown has no links inside code: the record's name is linked, the rest is plain.
    for record in inside:
        name = record.__name__
        text = re.sub(rf"\b{name}\b", f"[{name}](#{name.lower()})", text, count=1)
    return text.replace("[[", "\\[[").replace(")]", ")\\]")
