"""The license of a teacher's weights: at the start of a distillation, and in all that it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from hgkd_edge.distillation import setup
from hgkd_edge.distillation.license import license_notes, license_terms
from hgkd_edge.distillation.parts import build
from hgkd_edge.manifest_record import ManifestRecord, NetworkOrigin
from hgkd_edge.recipe import Recipe
from hgkd_edge.report import report
from hgkd_edge.rundir import RunDir

DINOV3 = "vit_small_patch16_dinov3.lvd1689m"
TERMS = "license dinov3-license, which has custom terms: read them before you use or distribute"


def test_a_custom_license_is_shown_first_and_recorded_in_manifest_and_report(
    tiny_recipe: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "dinov3.safetensors"
    teacher = {"name": DINOV3, "args": {"depth": 1}, "weights": "path", "path": str(file)}
    recipe = Recipe.model_validate(tiny_recipe | {"teacher": teacher})
    run = RunDir.create(recipe, tmp_path / "run")
    file.touch()
    parts = build(recipe)
    save_file({key: value.contiguous() for key, value in parts.vit.state_dict().items()}, file)
    before: list[str] = []
    read = setup.open_splits

    def open_splits(config: Any) -> Any:
        before.append(capsys.readouterr().err)
        return read(config)

    monkeypatch.setattr(setup, "open_splits", open_splits)

    setup.set_up(recipe, run, parts)
    page = report(run).read_text()

    assert "warning: teacher: license dinov3-license has custom terms" in before[0]
    assert run.manifest().teacher.license == "dinov3-license"
    assert TERMS in page


@pytest.mark.parametrize(
    ("license", "terms"),
    [
        ("apache-2.0", ""),
        ("MIT", ""),
        ("cc-by-nc-4.0", "forbids commercial use"),
        ("dinov3-license", "has custom terms"),
        ("gemma", "has custom terms"),
        ("unknown", "names no terms"),
    ],
)
def test_the_terms_of_a_license_are_known_by_its_name(license: str, terms: str) -> None:
    assert license_terms(license).startswith(terms)
    assert bool(license_terms(license)) == bool(terms)


def test_notes_are_of_the_networks_whose_license_has_conditions() -> None:
    manifest = ManifestRecord(
        teacher=NetworkOrigin(name=DINOV3, license="dinov3-license"),
        student=NetworkOrigin(name="resnet18", license="apache-2.0"),
    )

    (note,) = license_notes(manifest)

    assert note.startswith(f"The teacher's weights ({DINOV3}) have the {TERMS}")
