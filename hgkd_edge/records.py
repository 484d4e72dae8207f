"""What the JSON files of a run have in common: typed fields, a schema version, one way to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from hgkd_edge.errors import RunError
from hgkd_edge.parsing import cut

__all__ = ["SCHEMA_VERSION", "Images", "Record", "RecordType", "RunRecord", "parse_record"]

SCHEMA_VERSION = 1


class Images(BaseModel):
    """Which images were scored: scores on others cannot be compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: str
    images: int
    fingerprint: str


class Record(BaseModel):
    """Part of a run's JSON file.

    Fields that no code reads are kept as they are, so a file is written back as it was read, except
    for names of earlier versions.
    """

    RENAMED: ClassVar[dict[str, str]] = {}  # earlier name -> today's

    # Files of earlier versions may hold Infinity: it is kept as it is.
    model_config = ConfigDict(
        extra="allow",
        populate_by_name=True,
        protected_namespaces=(),
        ser_json_inf_nan="constants",
    )

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, content: Any) -> Any:
        if not isinstance(content, dict) or not cls.RENAMED.keys() & content.keys():
            return content
        today = {cls.RENAMED[key]: value for key, value in content.items() if key in cls.RENAMED}
        return today | {key: value for key, value in content.items() if key not in cls.RENAMED}

    def to_dict(self) -> dict[str, Any]:
        """The fields that were set, as plain data."""
        return self.model_dump(mode="json", exclude_unset=True, by_alias=True)


class RunRecord(Record):
    """A whole JSON file of a run. Files of earlier versions state no schema version."""

    schema_version: int = SCHEMA_VERSION


RecordType = TypeVar("RecordType", bound=RunRecord)


def parse_record(kind: type[RecordType], content: Any, file: Path) -> RecordType:
    """The content of a JSON file as a record.

    Raises:
        RunError: A later version wrote it, or a field is missing or has a different type.
    """
    stated = content.get("schema_version", SCHEMA_VERSION)
    if type(stated) is int and stated > SCHEMA_VERSION:
        raise RunError(
            f"{file}: has schema version {stated}; this hgkd-edge reads up to {SCHEMA_VERSION}",
            hint="update hgkd-edge: pip install --upgrade hgkd-edge",
        )
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(cut(str(part)) for part in first["loc"])
        raise RunError(
            f"{file}: is damaged: {where}: {first['msg']}",
            hint="delete it and run the command that wrote it again; the rest of the run is intact",
        ) from error
