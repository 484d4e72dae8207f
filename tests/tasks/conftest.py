"""A run folder with an untrained backbone: fine-tuning does not care how it was trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from hgkd_edge.distillation.parts import build
from hgkd_edge.models.backbone import save_backbone
from hgkd_edge.recipe import find_recipe, load_recipe
from hgkd_edge.rundir import RunDir
from hgkd_edge.sparse import densify


def untrained(path: Path) -> RunDir:
    """A run of the demo's recipe at 32 px, with an untrained backbone."""
    recipe = load_recipe(find_recipe("demo"), ["data.image_size=32"])
    made = RunDir.create(recipe, path)
    parts = build(recipe)
    save_backbone(densify(parts.encoder), parts.spec, made.backbone_file)
    return made


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """`runs/demo` of the demo's recipe at 32 px, with an untrained backbone."""
    monkeypatch.chdir(tmp_path)
    return untrained(Path("runs/demo"))
