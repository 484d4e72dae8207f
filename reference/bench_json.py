"""The reference of `bench.json`, from the models that read and write it."""

from __future__ import annotations

import inspect
import re
from typing import Any, get_args

from pydantic import BaseModel

from hgkd_edge.bench import records
from reference.markdown import code, table

INTRODUCTION = """# bench.json

What `hgkd-edge bench` writes (`hgkd_edge/bench/records.py`). The file has one session per target.
Measuring a target again replaces its session. Times are in ms, sizes in MiB, power in W, unless a
name says otherwise.

Unknown keys are refused. A file of another schema version is refused and never overwritten.
Estimates (`bench --estimate`) are written to `bench-estimate.json`, never to this file.

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
    if _is_record(annotation):
        return [annotation]
    return [record for part in get_args(annotation) for record in _records_in(part)]


def _is_record(annotation: Any) -> bool:
    # In Python 3.10, `list[int]` counts as a class.
    return (
        inspect.isclass(annotation)
        and not get_args(annotation)
        and issubclass(annotation, BaseModel)
    )


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
    if get_args(annotation):
        text = str(annotation)
    else:
        text = getattr(annotation, "__name__", str(annotation))
    text = re.sub(r"\b(typing|hgkd_edge\.bench\.records)\.", "", text).replace("NoneType", "null")
    text = re.sub(r"\bNone\b", "null", text)
    records = _records_in(annotation)
    if not records:
        return code(text)
    # Markdown has no links inside code: the record's name is linked, the rest is plain.
    text = text.replace("[", "\\[").replace("]", "\\]")
    for record in records:
        name = record.__name__
        text = re.sub(rf"\b{name}\b", f"[{name}](#{name.lower()})", text, count=1)
    return text
