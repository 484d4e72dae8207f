"""manifest.json: read as it was written, now and by earlier versions."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from hgkd_edge import provenance
from hgkd_edge.confidence import mean_interval
from hgkd_edge.data.sources import ImageSource
from hgkd_edge.errors import RunError
from hgkd_edge.manifest_record import (
    Circumstances,
    Distilled,
    HeldOut,
    ManifestRecord,
    SplitRecord,
)
from hgkd_edge.provenance import circumstances, record_met
from hgkd_edge.recipe import Recipe
from hgkd_edge.rundir import RunDir

STORED = Path(__file__).parent / "records"


@pytest.fixture
def run(tiny_recipe: dict[str, Any], tmp_path: Path) -> RunDir:
    return RunDir.create(Recipe.model_validate(tiny_recipe), tmp_path / "run")


def test_todays_manifest_is_kept_as_it_is_with_what_no_code_reads(run: RunDir) -> None:
    text = (STORED / "manifest.json").read_text()
    run.manifest_file.write_text(text)

    found = run.manifest()
    run.update_manifest(Circumstances(seed=3))

    assert found.teacher is not None
    assert found.teacher.license == "dinov3-license"
    assert found.data["train"].skipped == [("train/hat/0005.jpg", "truncated")]
    assert found.data["train"].decided == {"data.bits": 8}
    assert found.held_out is not None
    assert found.held_out.sites == "masked"
    assert found.labeled_data["test"].photos == 372
    assert found.quantization_aware is not None
    assert json.loads(run.manifest_file.read_text()) == json.loads(text) | {"seed": 3}


def test_a_manifest_of_before_schema_versions_loads_and_gets_one(run: RunDir) -> None:
    content = json.loads((STORED / "manifest_before_schema_versions.json").read_text())
    run.manifest_file.write_text(json.dumps(content))

    found = run.manifest()
    run.update_manifest(Circumstances())

    assert (
        run.recorded_sha256(run.model_file) == content["artefacts"]["model.safetensors"]["sha256"]
    )
    assert found.artifacts["model.safetensors"].made_from == ["backbone.safetensors"]
    content["artifacts"] = content.pop("artefacts")
    assert found.to_dict() == content
    assert json.loads(run.manifest_file.read_text()) == content | {"schema_version": 1}


def test_a_manifest_of_a_later_version_is_refused_in_one_line(run: RunDir) -> None:
    run.manifest_file.write_text('{"schema_version": 2, "artifacts": "elsewhere"}')

    with pytest.raises(RunError, match=r"manifest\.json: has schema version 2") as caught:
        run.manifest()

    assert "\n" not in caught.value.message
    assert caught.value.hint == "update hgkd-edge: pip install --upgrade hgkd-edge"


def test_a_damaged_entry_is_named(run: RunDir) -> None:
    run.manifest_file.write_text('{"data": {"train": {"fingerprint": "f"}}}')

    with pytest.raises(RunError, match=r"is damaged: data\.train\.photos: Field required"):
        run.manifest()


def test_a_distillation_without_a_held_out_score_is_recorded_as_empty(run: RunDir) -> None:
    run.update_manifest(ManifestRecord(result=Distilled(held_out=None)))

    assert json.loads(run.manifest_file.read_text())["result"] == {"held_out": {}}
    assert run.manifest().result == Distilled(held_out=None)


def test_the_scores_of_the_first_versions_have_an_unknown_gain() -> None:
    found = HeldOut.model_validate({"student": 0.5, "mean_token": 0.1, "photos": 9})

    assert found.gain_ci95 is None
    assert found.gain_bounds == (float("-inf"), float("inf"))


def test_the_score_of_one_image_has_no_interval_and_is_json(run: RunDir) -> None:
    one = HeldOut(student=0.5, mean_token=0.1, photos=1, gain_ci95=mean_interval([0.4]))
    earlier = HeldOut.model_validate(one.to_dict() | {"gain_ci95": [float("-inf"), float("inf")]})

    run.update_manifest(ManifestRecord(result=Distilled(held_out=one)))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    content = json.loads(run.manifest_file.read_text(), parse_constant=refuse)
    assert content["result"]["held_out"]["gain_ci95"] is None
    assert earlier == one


def test_the_revision_of_a_project_around_the_package_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
        done = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def recorded() -> str | None:
        nothing = torch.zeros(0, dtype=torch.int64)
        source = ImageSource(nothing, nothing, [], [], "f")
        return circumstances(seed=0, precision="fp32", splits={"train": source}).git_revision

    package = tmp_path / ".venv" / "hgkd_edge" / "provenance.py"
    package.parent.mkdir(parents=True)
    package.touch()
    git("init")
    git("commit", "--allow-empty", "-m", "a project")
    monkeypatch.setattr(provenance, "__file__", str(package))

    assert recorded() is None
    git("add", "--force", ".")
    assert recorded() == git("rev-parse", "HEAD")


def test_very_many_skipped_files_are_counted_and_not_all_listed(run: RunDir) -> None:
    skipped = [(f"{i:05d}.jpg", "truncated") for i in range(1500)]
    nothing = torch.zeros(0, dtype=torch.int64)
    source = ImageSource(nothing, nothing, [], [], "f", skipped=skipped)
    run.update_manifest(circumstances(seed=0, precision="fp32", splits={"train": source}))

    met = SplitRecord(photos=0, fingerprint="f", skipped=[*skipped, ("z.jpg", "empty")])
    record_met(run, [met])

    train = run.manifest().data["train"]
    assert train.skipped == skipped[:1000]
    assert (train.more_skipped, train.skipped_count) == (501, 1501)


def test_names_of_files_that_are_not_utf8_are_written_and_read(run: RunDir) -> None:
    train = SplitRecord(photos=1, fingerprint="f", skipped=[("a\udce9.jpg", "truncated")])
    run.update_manifest(Circumstances(data={"train": train}))

    (skipped,) = run.manifest().data["train"].skipped

    assert skipped == ("a\udce9.jpg", "truncated")
