"""The content of `export.json`: every exported file of a run, each with its verification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from exporters.errors import ExportError
from exporters.network_files import network_files
from hgkd_edge.console import warn
from hgkd_edge.errors import RunError
from hgkd_edge.files import file_sha256, write_json
from hgkd_edge.rundir import RunDir

__all__ = [
    "MOST_SCORED",
    "ExportedFile",
    "Proof",
    "exported_files",
    "is_unchanged",
    "read_exports",
    "write_exports",
]

MOST_SCORED = 1000  # held-out images that an exported file is scored on, spread over the split


class _Part(BaseModel):
    """The fields read from a record; other fields are ignored."""

    model_config = ConfigDict(extra="ignore")


class Proof(_Part):
    """How the outputs of a file agreed with those of the file that it was made from."""

    passed: bool = True
    cosine: float | None = None
    top1_agreement: float | None = None


class ExportedFile(_Part):
    """A file's entry in `export.json`."""

    path: str
    precision: str
    made_from: str
    verification: Proof | None = None

    @property
    def name(self) -> str:
        return Path(self.path).name


def write_exports(run: RunDir, result: dict[str, Any]) -> None:
    """Write `export.json`: this export, and every unchanged file of earlier ones.

    Args:
        run: The run; its manifest holds each file's sha256 at the time of recording.
        result: As `export_run` returns it, with the `files` made so far.
    """
    made = {_file(run, entry) for entry in result["files"]}
    kept = [
        entry
        for entry in _earlier(run)
        if _file(run, entry) not in made and is_unchanged(run, _file(run, entry))
    ]
    write_json(run.export_file, {**result, "files": [*kept, *result["files"]]})


def read_exports(run: RunDir) -> dict[str, Any]:
    """The content of `export.json`; empty if nothing was exported.

    Each entry of `files` records the images it was `verified_on`.

    Raises:
        RunError: It is damaged.
    """
    if not run.export_file.is_file():
        return {}
    record = run.read_json(run.export_file)
    about = {key: record[key] for key in ("verified_on", "weights") if key in record}
    files = [{**about, **_renamed(entry)} for entry in record.get("files", [])]
    return {**record, "files": files}


def _renamed(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry with today's keys: earlier versions wrote `flavour`."""
    return {"flavor" if key == "flavour" else key: value for key, value in entry.items()}


def exported_files(run: RunDir) -> list[ExportedFile]:
    """The entries of `files` in `export.json`.

    Raises:
        RunError: It is damaged.
    """
    try:
        return [ExportedFile.model_validate(one) for one in read_exports(run).get("files", [])]
    except (ValidationError, TypeError, AttributeError) as error:
        raise RunError(
            f"{run.export_file}: is damaged: an entry of 'files' is none of a file",
            hint=f"export again: hgkd-edge export {run.quoted}",
        ) from error


def _earlier(run: RunDir) -> list[dict[str, Any]]:
    try:
        return list(read_exports(run).get("files", []))
    except RunError as error:
        warn(f"{error.message}; the proofs of earlier exports are lost, export those files again")
        return []


def _file(run: RunDir, entry: dict[str, Any]) -> Path:
    """The path of an entry's file, whatever the working folder of the export."""
    return run.export_dir / Path(entry["path"]).name


def is_unchanged(run: RunDir, file: Path) -> bool:
    """Whether a network is on disk with all its files, as recorded in the manifest."""
    try:
        files = network_files(file) if file.is_file() else ()
    except ExportError:  # its weights are missing
        return False
    return bool(files) and all(run.recorded_sha256(one) == file_sha256(one) for one in files)
