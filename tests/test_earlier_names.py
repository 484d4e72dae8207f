"""Options, keys and records under the names of earlier versions still work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from hgkd_edge.cli import export
from hgkd_edge.distillation.teacher_network import create_vit
from hgkd_edge.distillation.teacher_weights import BUNDLED_TEACHER, load_vit_weights
from hgkd_edge.errors import RecipeError
from hgkd_edge.export_options import ExportOptions
from hgkd_edge.export_record import read_exports
from hgkd_edge.files import write_json
from hgkd_edge.manifest_record import NetworkOrigin
from hgkd_edge.recipe import Recipe, find_recipe, load_recipe
from hgkd_edge.rundir import RunDir
from hgkd_edge.tables import export_lines
from hgkd_edge.tasks.config import SegmentConfig, recorded_settings, resolve


@pytest.fixture
def run(tiny_recipe: dict[str, Any], tmp_path: Path) -> RunDir:
    return RunDir.create(Recipe(**tiny_recipe), tmp_path / "run")


def test_a_manifest_of_an_earlier_version_is_read_and_written_under_todays_names(
    run: RunDir,
) -> None:
    run.backbone_file.write_bytes(b"weights")
    run.add_artifact(run.backbone_file)
    entries = run.read_json(run.manifest_file)["artifacts"]
    earlier = {"artefacts": entries, "teacher": {"name": "vit", "licence": "dinov3-license"}}
    write_json(run.manifest_file, earlier)

    assert run.require_recorded(run.backbone_file)
    assert run.manifest().teacher == NetworkOrigin(name="vit", license="dinov3-license")
    run.add_artifact(run.recipe_file)
    stored = run.read_json(run.manifest_file)
    assert set(stored["artifacts"]) == {"backbone.safetensors", "recipe.yaml"}
    assert "artefacts" not in stored


def test_exports_of_an_earlier_version_show_their_int8_flavor(run: RunDir) -> None:
    file = {
        "kind": "onnx", "precision": "int8", "flavour": "cpu", "path": "x.onnx",
        "size_bytes": 2**20, "verification": None,
    }  # fmt: skip
    on = {"photos": 16, "split": "test"}
    write_json(run.export_file, {"verified_on": on, "files": [file]})

    found = read_exports(run)

    assert "onnx int8 cpu: x.onnx (1.0 MiB)" in export_lines(found)


def test_the_earlier_spelling_of_an_option_works_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen: list[ExportOptions] = []
    monkeypatch.setattr(export, "_export", lambda run, options, as_json: chosen.append(options))

    export.export(precision="int8", flavour=["cpu"])

    assert chosen[0].flavors == ("cpu",)
    assert "warning: --flavour is now spelled --flavor" in capsys.readouterr().err


def test_removed_keys_of_earlier_runs_are_ignored_and_warned_of_if_they_were_used(
    tiny_recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Recipe.model_validate(tiny_recipe)
    unused = plain.model_dump(mode="json")
    unused["augment"] = {"colors": False, "mixup": False}
    unused["loss"]["cosine_weight"] = 0.0
    unused["teacher"]["combine"] = "mean"

    assert Recipe.model_validate(unused) == plain
    assert not capsys.readouterr().err
    used = {**unused, "augment": {"colors": True, "mixup": False}}
    assert Recipe.model_validate(used) == plain
    assert "the key 'augment' was removed and has no effect" in capsys.readouterr().err


def test_the_earlier_spelling_of_a_key_works_with_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert SegmentConfig.model_validate({"colour": 0.5}).color == 0.5
    assert "the key 'colour' is now named 'color'" in capsys.readouterr().err


def test_both_spellings_of_a_key_are_refused(run: RunDir) -> None:
    run.backbone_file.write_bytes(b"weights")
    both = ["segment.colour=0.5", "segment.color=0.2"]

    with pytest.raises(RecipeError, match="unknown key 'segment.colour'"):
        resolve(run, "segment", None, "distilled", both)


def test_settings_of_an_earlier_fine_tuning_load_without_a_warning(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    run.backbone_file.write_bytes(b"weights")
    settings = resolve(run, "segment", None, "distilled", ["segment.color=0.35"])
    text = settings.model_dump_json().replace('"color":', '"colour":')
    run.finetune_file.write_text(text)

    assert recorded_settings(run) == settings
    assert "warning" not in capsys.readouterr().err


def test_weights_of_an_earlier_version_keep_their_normalization(tmp_path: Path) -> None:
    file = tmp_path / "vit.safetensors"
    state, text = load_file(BUNDLED_TEACHER), '{"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}'
    teacher = load_recipe(find_recipe("demo")).teacher
    for key in ("hgkd_edge.normalisation", "hgkd_edge.normalization"):
        save_file(state, file, metadata={key: text})
        vit = create_vit(teacher, size=(64, 64))

        load_vit_weights(vit, file)

        assert vit.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
