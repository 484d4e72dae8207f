"""What the benchmarks write into the docs is what they measured."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.gpu import table

ROWS = [
    {"model": "a", "batch": 8, "kind": "dense", "mode": "eager", "triton": True, "ms": 30.0},
    {"model": "a", "batch": 8, "kind": "tiles", "mode": "graph", "triton": True, "ms": 12.0},
    {"model": "a", "batch": 8, "kind": "tiles", "mode": "graph", "triton": False, "ms": 20.0},
    {"model": "b", "batch": 8, "kind": "dense", "mode": "eager", "triton": False, "ms": 30.0},
    {"model": "b", "batch": 8, "kind": "tiles", "mode": "graph", "triton": False, "ms": 20.0},
]


def figures(source: str) -> dict[str, Any]:
    return {"source": source, "machine": {"gpu": "A GPU"}, "encoder": ROWS, "update": []}


def test_the_docs_hold_the_tables_of_the_committed_figures() -> None:
    page = table.DOCS.read_text()

    assert table.insert(page, json.loads(table.FIGURES.read_text())) == page


@pytest.mark.parametrize("source", ["modeled", "dry run"])
def test_figures_that_no_gpu_confirmed_say_so(source: str) -> None:
    assert f"**{source}**: no GPU has confirmed" in table.block(figures(source))
    assert "no GPU" not in table.block(figures("measured"))


def test_the_gain_is_over_dense_and_by_the_fastest_kernels_there_are() -> None:
    lines = table.block(figures("measured")).splitlines()

    assert "| a | 30.0 | – | – | 20.0 | 12.0 | 2.50x |" in lines
    assert "| b | 30.0 | – | – | 20.0 | – | 1.50x |" in lines
