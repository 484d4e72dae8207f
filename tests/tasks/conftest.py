"""A run folder with an untrained backbone: fine-tuning does not care how it was trained."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from torch import nn

from hgkd_edge.distillation.parts import build
from hgkd_edge.models.backbone import BackboneSpec, save_backbone
from hgkd_edge.recipe import Recipe, find_recipe, load_recipe
from hgkd_edge.rundir import RunDir
from hgkd_edge.sparse import densify


def untrained(path: Path) -> RunDir:
    """A run of the demo's recipe at 32 px, with an untrained backbone."""
    made = RunDir.create(_recipe(), path)
    save_backbone(*_backbone(), made.backbone_file)
    return made


def _recipe() -> Recipe:
    return load_recipe(find_recipe("demo"), ["data.image_size=32"])


@functools.cache
def _backbone() -> tuple[nn.Module, BackboneSpec]:
    parts = build(_recipe())
    return densify(parts.encoder), parts.spec


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """`runs/demo` of the demo's recipe at 32 px, with an untrained backbone."""
    monkeypatch.chdir(tmp_path)
    return untrained(Path("runs/demo"))
