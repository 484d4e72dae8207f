"""export.json keeps the verifications of earlier exports as long as they are valid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hgkd_edge.export_record import read_exports, write_exports
from hgkd_edge.recipe import Recipe
from hgkd_edge.rundir import RunDir

ON = {"split": "test", "photos": 16}


@pytest.fixture
def run(tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.chdir(tmp_path)
    made = RunDir.create(Recipe.model_validate(tiny_recipe))
    made.export_dir.mkdir()
    return made


def export(run: RunDir, **files: str) -> None:
    """An export of files by name and content; each file's verification is its content."""
    entries = []
    for name, content in files.items():
        file = run.export_dir / f"{name}.plan"
        file.write_text(content)
        run.add_artifact(file)
        entries.append({"path": str(file), "verification": content, "verified_on": ON})
    write_exports(run, {"verified_on": ON, "weights": "w", "precision": "x", "files": entries})


def proofs(run: RunDir) -> dict[str, str]:
    entries = read_exports(run)["files"]
    return {Path(entry["path"]).stem: entry["verification"] for entry in entries}


def test_a_second_export_keeps_the_files_of_the_first(run: RunDir) -> None:
    export(run, fp32="a", fp16="b")

    export(run, fp32="new", int8="c")

    assert proofs(run) == {"fp16": "b", "fp32": "new", "int8": "c"}


@pytest.mark.parametrize("what", ["is gone", "was changed"])
def test_a_proof_ends_with_its_file(run: RunDir, what: str) -> None:
    export(run, fp32="a", fp16="b")
    file = run.export_dir / "fp16.plan"
    file.unlink() if what == "is gone" else file.write_text("other")

    export(run, fp32="a")

    assert proofs(run) == {"fp32": "a"}


def test_files_are_the_same_whichever_folder_the_command_was_typed_in(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(run, fp32="a", fp16="b")

    monkeypatch.chdir(run.path)
    here = RunDir.resolve(".")
    export(here, fp32="new")

    assert proofs(here) == {"fp16": "b", "fp32": "new"}


def test_a_record_of_the_format_before_says_where_its_proofs_come_from(run: RunDir) -> None:
    export(run, fp16="b")
    record = json.loads(run.export_file.read_text())
    del record["files"][0]["verified_on"]
    run.export_file.write_text(json.dumps({**record, "verified_on": {"split": "val"}}))

    export(run, fp32="a")

    kept, new = read_exports(run)["files"]
    assert kept["verified_on"] == {"split": "val"}
    assert new["verified_on"] == ON


def test_a_damaged_record_costs_the_earlier_proofs_and_says_so(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    export(run, fp16="b")
    run.export_file.write_text("{")

    export(run, fp32="a")

    assert proofs(run) == {"fp32": "a"}
    assert "warning: runs/tiny/export.json: is damaged" in capsys.readouterr().err
