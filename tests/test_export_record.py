"""export.json keeps the verifications of earlier exports as long as they are valid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hgkd_edge.errors import RunError
from hgkd_edge.export_record import ExportRecord, VerifiedOn, read_exports, write_exports
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
    """An export of files by name and content; the precision of each proof is the content."""
    entries = []
    for name, content in files.items():
        file = run.export_dir / f"{name}.plan"
        file.write_text(content)
        run.add_artifact(file)
        about = {"kind": "engine", "precision": "fp16", "made_from": "a.onnx", "verified_on": ON}
        entries.append({**about, "path": str(file), "verification": {"precision": content}})
    made = {"verified_on": ON, "weights": "w", "precision": "x", "files": entries}
    write_exports(run, ExportRecord.model_validate(made))


def proofs(run: RunDir) -> dict[str, str]:
    files = read_exports(run).files
    return {Path(file.name).stem: file.verification.precision for file in files}


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

    kept, new = read_exports(run).files
    assert kept.verified_on == VerifiedOn(split="val")
    assert new.verified_on == VerifiedOn(**ON)


def test_a_damaged_record_costs_the_earlier_proofs_and_says_so(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    export(run, fp16="b")
    run.export_file.write_text("{")

    export(run, fp32="a")

    assert proofs(run) == {"fp32": "a"}
    assert "warning: runs/tiny/export.json: is damaged" in capsys.readouterr().err


STORED = Path(__file__).parent / "records" / "export_before_schema_versions.json"


def test_a_record_of_before_schema_versions_loads_and_is_kept_as_it_was(run: RunDir) -> None:
    before = json.loads(STORED.read_text())
    run.export_file.write_text(STORED.read_text())

    found = read_exports(run)

    assert [file.name for file in found.files] == [Path(f["path"]).name for f in before["files"]]
    int8 = found.files[1]
    assert (int8.flavor, int8.made_from) == ("cpu", "tiny.fp32.onnx")
    assert int8.verification.cosine == before["files"][1]["verification"]["cosine"]
    assert int8.accuracy.on.images == 18
    assert found.sensitivity["cpu"][0].module == before["sensitivity"]["cpu"][0]["module"]
    renamed = {key.replace("our", "or"): value for key, value in before["files"][1].items()}
    assert int8.to_dict() == renamed | {"weights": before["weights"]}


def test_a_record_of_a_later_version_is_refused_in_one_line(run: RunDir) -> None:
    run.export_file.write_text(json.dumps({"schema_version": 2, "files": "elsewhere"}))

    with pytest.raises(RunError, match="schema version 2; this hgkd-edge reads up to 1") as caught:
        read_exports(run)

    assert "\n" not in caught.value.message
    assert caught.value.hint == "update hgkd-edge: pip install --upgrade hgkd-edge"


def test_a_damaged_entry_is_named(run: RunDir) -> None:
    run.export_file.write_text(json.dumps({"files": [{"kind": "onnx", "precision": "fp32"}]}))

    with pytest.raises(RunError, match=r"export\.json: is damaged: files\.0\.path: Field required"):
        read_exports(run)
