"""The benchmarks write into the docs exactly what they measured."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate.utils import DistributedType

from benchmarks import million, soak
from benchmarks.gpu import table
from benchmarks.gpu.__main__ import Results
from benchmarks.gpu.__main__ import test_summary as summary
from benchmarks.gpu.measure import DRY
from benchmarks.gpu.update import _refuse
from benchmarks.gpu.warm_up import compile_all
from hgkd_edge.engine import graph

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


def test_a_part_that_fails_costs_itself_only(tmp_path: Path) -> None:
    def half() -> Iterator[dict[str, Any]]:
        yield {"ms": 1.0}
        raise ValueError("no memory")

    results = Results(tmp_path / "gpu.json", deadline=time.time() + 60, dry=True)
    results.part("encoder", "a", half)
    results.part("encoder", "b", lambda: [{"ms": 2.0}])
    results.deadline = 0
    results.part("update", "c", lambda: pytest.fail("there was no time for it"))

    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["ms"] for row in found["encoder"]] == [1.0, 2.0]
    assert found["errors"] == ["encoder: a: ValueError: no memory"]
    assert found["skipped"] == ["update: c: no time left"]


def test_a_part_that_takes_too_long_is_cut_off_and_keeps_its_rows(tmp_path: Path) -> None:
    def slow() -> Iterator[dict[str, Any]]:
        yield {"ms": 1.0}
        try:
            time.sleep(30)
        except Exception:  # as a fallback would catch
            pytest.fail("the limit was taken for an error")

    results, begin = Results(tmp_path / "gpu.json", time.time() + 60, dry=True), time.time()
    results.part("encoder", "a", slow, 0.2)
    results.part("encoder", "b", lambda: [{"ms": 2.0}], 5)
    results.deadline = time.time() + 0.2
    results.part("update", "c", slow, 60)

    found = json.loads((tmp_path / "gpu.json").read_text())
    assert time.time() - begin < 20
    assert [row["ms"] for row in found["encoder"]] == [1.0, 2.0]
    assert found["skipped"] == ["encoder: a: cut off after 0 s", "update: c: cut off after 0 s"]


def test_networks_whose_kernels_are_not_compiled_in_time_are_named() -> None:
    begin = time.time()

    found = compile_all(DRY, 0.1)

    assert time.time() - begin < 20
    assert found["failed"] == list(DRY.networks)


def test_an_eager_pass_is_never_measured_as_a_graph() -> None:
    gpu: Any = SimpleNamespace(
        device=torch.device("cuda"), distributed_type=DistributedType.NO, scaler=object()
    )

    with mock.patch.object(graph, "_report", _refuse), pytest.raises(RuntimeError, match="eager"):
        graph.graphed_pass(lambda _: {}, torch.nn.Identity(), gpu, wanted=True, exchanges=False)


def test_the_summary_names_what_failed(tmp_path: Path) -> None:
    report = tmp_path / "tests.xml"
    report.write_text(
        '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1">'
        '<testcase classname="t" name="good"/><testcase classname="t" name="bad"><failure/>'
        '</testcase><testcase classname="t" name="left"><skipped/></testcase>'
        "</testsuite></testsuites>"
    )

    assert summary(report) == {
        "tests": 3, "failures": 1, "errors": 0, "skipped": 1, "failed": ["t::bad"]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("grown", "flat"),
    [
        ((0, 0, 0), True),
        ((7, 0, 0), True),
        ((30, 0, 0), False),
        ((0, 1, 0), False),
        ((0, 0, 1), False),
    ],
)
def test_a_command_that_grows_while_it_runs_is_not_flat(
    grown: tuple[int, int, int], flat: bool, tmp_path: Path
) -> None:
    soaked = soak.Soaked("kept", mock.Mock(), tmp_path / "log")
    for moment in range(40):
        share = moment / 40  # a start that is larger than what follows is no matter
        rise = [amount * (moment >= 25) for amount in grown]
        soaked.samples.append(
            soak.Sample(100 + 200 * (share < 0.2) + rise[0], 9 + rise[1], 4 + rise[2])
        )

    outcome = soaked.outcome(130)

    assert outcome["flat"] == flat
    assert outcome["samples"] == 40


@pytest.mark.parametrize("folders", [1, 500])
def test_a_vast_folder_is_listed_whole_in_little_memory(tmp_path: Path, folders: int) -> None:
    million.make(tmp_path, 20_000, folders)

    tracemalloc.start()
    figures = million.listed(tmp_path / "photos")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert figures["listed"] == 20_000
    assert figures["classes"] == (folders if folders > 1 else 0)  # one subfolder is no label
    assert peak < 400 * 20_000  # bytes
