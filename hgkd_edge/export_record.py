"""What `export.json` holds: every file that a run's exports have made, each with its own proof."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporters.errors import ExportError
from exporters.network_files import network_files
from hgkd_edge.console import warn
from hgkd_edge.errors import RunError
from hgkd_edge.files import file_sha256, write_json
from hgkd_edge.rundir import RunDir

__all__ = ["MOST_SCORED", "is_unchanged", "read_exports", "write_exports"]

MOST_SCORED = 1000  # held-out images that an exported file is scored on, spread over the split


def write_exports(run: RunDir, result: dict[str, Any]) -> None:
    """Write `export.json`: this export, and of earlier ones every file that is still the same.

    Args:
        run: The run; its manifest holds each file's sha256 as it was when it was recorded.
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
    """What `export.json` holds; empty where nothing was exported.

    Each of its `files` says by itself which images it was `verified_on`.

    Raises:
        RunError: It is damaged.
    """
    if not run.export_file.is_file():
        return {}
    record = run.read_json(run.export_file)
    about = {key: record[key] for key in ("verified_on", "weights") if key in record}
    return {**record, "files": [{**about, **entry} for entry in record.get("files", [])]}


def _earlier(run: RunDir) -> list[dict[str, Any]]:
    try:
        return list(read_exports(run).get("files", []))
    except RunError as error:
        warn(f"{error.message}; the proofs of earlier exports are lost, export those files again")
        return []


def _file(run: RunDir, entry: dict[str, Any]) -> Path:
    """Where the file of an entry lies, wherever the export was started."""
    return run.export_dir / Path(entry["path"]).name


def is_unchanged(run: RunDir, file: Path) -> bool:
    """Whether a network is on disk, with all its files, as the manifest knows it."""
    try:
        files = network_files(file) if file.is_file() else ()
    except ExportError:  # its weights are missing
        return False
    return bool(files) and all(run.recorded_sha256(one) == file_sha256(one) for one in files)
