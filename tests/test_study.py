"""The study's arms are recipes that can be read; what comes out of them is in docs/results.md."""

from __future__ import annotations

import json

import pytest

from benchmarks.study.__main__ import HERE
from benchmarks.study.arms import ABLATION, ARMS, spelled
from benchmarks.study.protocols import PROTOCOLS
from benchmarks.study.report import report
from hgkd_edge.recipe import load_recipe


@pytest.mark.parametrize("base", PROTOCOLS)
def test_every_arm_and_change_is_a_recipe(base: str) -> None:
    file = HERE / f"{base}.yaml"
    epochs = load_recipe(file).train.epochs

    for name, changes in {**ARMS, **ABLATION}.items():
        recipe = load_recipe(file, spelled(changes, epochs))
        assert recipe.name == base, name
        masks = recipe.mask.per_image
        times = 10 if "ten times" in name else 2 if masks == 4 else 1
        assert recipe.train.epochs * masks == epochs * times, name


def test_the_report_shows_every_cell_that_is_committed() -> None:
    cells = [json.loads(file.read_text()) for file in (HERE / "cells").glob("*.json")]

    said = report(HERE / "cells")

    assert len(cells) > 50
    assert all(f"| {cell['arm']} |" in said for cell in cells)
