"""The runner that is sent to a box takes time exactly as the one on this machine does."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from hgkd_edge.bench import method, records
from hgkd_edge.bench.edge.agent import ort
from hgkd_edge.bench.edge.job import make_job
from hgkd_edge.bench.models import resolve_models
from hgkd_edge.bench.options import BenchOptions

from ..conftest import build_convnet


class NoTelemetry:
    def between(self, _begin: float, _finish: float) -> list[object]:
        return []


@pytest.mark.parametrize("count", [None, 6], ids=["duration", "count"])
@pytest.mark.parametrize("rounds", [1, 3])
def test_the_sent_runner_rests_settles_and_counts_as_the_local_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int | None, rounds: int
) -> None:
    import onnx

    onnx.save(build_convnet(), tmp_path / "net.onnx")
    options = BenchOptions(
        models=(tmp_path / "net.onnx",),
        batches=(1, 2),
        rounds=rounds,
        count=count,
        duration_s=1e-6,
    )
    facts = {"onnxruntime": "1.0"}
    job = make_job(resolve_models(options.models), options, facts, where="box").message
    done: list[str] = []
    seconds = iter(range(10**9))
    monkeypatch.setattr(time, "sleep", lambda duration: done.append(f"rest {duration}"))
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(seconds) * 10**8)
    monkeypatch.setattr(ort, "METHOD", Path(method.__file__).read_text())
    monkeypatch.setitem(sys.modules, "hgkd_agent.method", method)  # put back afterwards
    monkeypatch.setitem(sys.modules, "hgkd_edge.bench.records", records)
    monkeypatch.setattr(method, "sleep", lambda duration: done.append(f"rest {duration}"))
    monkeypatch.setattr(method, "perf_counter_ns", lambda: next(seconds) * 10**8)
    monkeypatch.setattr(ort.time, "monotonic", lambda: next(seconds) / 10)

    def opened(case: dict[str, object], _path: str, _timed: object) -> dict[str, object]:
        name = f"run {case['number']}"
        return {"run": lambda: done.append(name), "load_ms": 0, "first_ms": 0, "memory_mb": 0}

    monkeypatch.setattr(ort, "open_case", opened)
    monkeypatch.setattr(ort, "send", lambda *_, **__: None)

    sent = ort.measure_all(
        job["cases"], str(tmp_path), lambda _case: {"onnx": ""}, job["plan"], NoTelemetry()
    )
    theirs, done[:] = list(done), []
    local = method.measure(
        [lambda: done.append("run 0"), lambda: done.append("run 1")],
        method.Plan(rounds=rounds, count=count, duration_s=1e-6),
    )

    assert (
        theirs[theirs.index(f"rest {method.REST_S}") :]
        == done[done.index(f"rest {method.REST_S}") :]
    )
    assert [len(part) for one in sent for part in one["rounds"]] == [
        len(part) for one in local for part in one.rounds
    ]
