"""`distill --dry-run`: what a run will take, with nothing of it kept."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import hgkd_edge
from hgkd_edge.api.distilling import dry_run_lines
from hgkd_edge.cli import app
from hgkd_edge.distillation import dry_run as module
from hgkd_edge.errors import RecipeError
from hgkd_edge.recipe import Recipe

BASE = {
    "run": "tiny",
    "images": 1000,
    "images_per_s": 100.0,
    "seconds": {"set_up": 12.0, "training": 3600.0},
    "total_seconds": 3612.0,
    "memory_bytes": 2_000_000_000,
    "gpu_memory_bytes": None,
    "run_bytes": 50_000_000,
    "cache_bytes": 0,
    "free_bytes": {"run": 10**12, "cache": 10**9},
}


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder and a cache that hold nothing yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HGKD_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def test_every_part_is_timed_and_nothing_is_kept(tiny_recipe: dict[str, Any], empty: Path) -> None:
    overrides = {"train.epochs": 40, "teacher.cache": 2, "train.evaluate_every": 10}

    result = hgkd_edge.dry_run(tiny_recipe, overrides)

    parts = {"set_up", "pretraining", "targets", "training", "checkpoints", "evaluation"}
    assert set(result["seconds"]) == parts
    assert all(seconds > 0 for seconds in result["seconds"].values())
    assert result["total_seconds"] == pytest.approx(sum(result["seconds"].values()))
    assert result["seconds"]["training"] == pytest.approx(40 * 48 / result["images_per_s"])
    rows, width = 64, 48  # 8 x 8 tokens
    assert result["cache_bytes"] == 48 * 2 * rows * width * 2
    assert result["run_bytes"] > 10_000
    assert result["memory_bytes"] > 10_000_000
    assert [entry.name for entry in empty.iterdir() if entry.name != "cache"] == []
    assert not any(file.is_file() for file in (empty / "cache").rglob("*"))


def test_a_teacher_that_was_pretrained_costs_no_time(
    tiny_recipe: dict[str, Any], empty: Path
) -> None:
    hgkd_edge.pretrain(tiny_recipe)

    assert "pretraining" not in hgkd_edge.dry_run(tiny_recipe)["seconds"]


def test_the_command_prints_it(tiny_recipe: dict[str, Any], empty: Path) -> None:
    tiny_recipe["teacher"]["weights"] = "hub"  # no weights are loaded where no features are learned
    tiny_recipe["loss"] = {"feature_weight": 0, "pixel_weight": 1}
    file = empty / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny_recipe))

    done = CliRunner().invoke(app, ["distill", str(file), "--dry-run", "--json"])

    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)["seconds"]) == {"set_up", "training", "checkpoints"}
    assert os.listdir(empty) == ["tiny.yaml"]


def test_the_lines_name_every_part_and_what_does_not_fit() -> None:
    lines = list(dry_run_lines(module.DryRun.model_validate(BASE)))
    more = {"cache_bytes": 2 * 10**9, "gpu_memory_bytes": 10**10}
    full = list(dry_run_lines(module.DryRun.model_validate(BASE | more)))

    assert lines[0] == "dry run of 'tiny': 1,000 images at 100 images/s"
    assert "  training                       1:00:00" in lines
    assert "  total, before final scores     1:00:12" in lines
    assert lines[-1] == "disk: run folder 0.05 GB of 1000 GB free"
    assert "memory: 2.0 GB, GPU 10.0 GB" in full
    assert full[-1] == "disk: teacher.cache 2.00 GB of 1 GB free: not enough"


def test_several_processes_are_refused(
    tiny_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "count", lambda: 2)

    with pytest.raises(RecipeError, match="--dry-run: runs in one process"):
        module.dry_run(Recipe.model_validate(tiny_recipe))
