"""The script sent to a device measures time exactly as this machine does."""

from __future__ import annotations

import json
import time
from pathlib import Path

import onnx
import pytest

from hgkd_edge.bench import timing
from hgkd_edge.bench.edge import ort_device
from hgkd_edge.bench.edge.hosts import make_job
from hgkd_edge.bench.models import resolve_models
from hgkd_edge.bench.options import BenchOptions

from ..conftest import build_convnet


@pytest.mark.parametrize("count", [None, 6], ids=["duration", "count"])
@pytest.mark.parametrize("rounds", [1, 3])
def test_the_sent_script_rests_settles_and_counts_as_the_local_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int | None, rounds: int
) -> None:
    onnx.save(build_convnet(), tmp_path / "net.onnx")
    options = BenchOptions(
        models=(tmp_path / "net.onnx",),
        batches=(1, 2),
        rounds=rounds,
        count=count,
        duration_s=1e-6,
    )
    files = make_job(
        resolve_models(options.models), options, {"onnxruntime": "1.0"}, where="box"
    ).files
    job = json.loads(files["job.json"])
    done: list[str] = []
    seconds = iter(range(10**9))
    monkeypatch.setattr(timing, "sleep", lambda duration: done.append(f"rest {duration}"))
    monkeypatch.setattr(timing, "perf_counter_ns", lambda: next(seconds) * 10**8)
    monkeypatch.setattr(time, "clock_gettime", lambda _clock: next(seconds) / 10)

    def opened(case: dict[str, object]) -> dict[str, object]:
        name = f"run {job['cases'].index(case)}"
        return {"run": lambda: done.append(name), "load_ms": 0, "first_ms": 0, "memory_mb": 0}

    monkeypatch.setattr(ort_device, "open_case", opened)

    sent = ort_device.measure_all(job["cases"], job["plan"])
    theirs, done[:] = list(done), []
    local = timing.measure(
        [lambda: done.append("run 0"), lambda: done.append("run 1")],
        timing.Plan(rounds=rounds, count=count, duration_s=1e-6),
    )

    assert Path(timing.__file__) == files["hgkd_edge/bench/timing.py"]
    assert (
        theirs[theirs.index(f"rest {timing.REST_S}") :]
        == done[done.index(f"rest {timing.REST_S}") :]
    )
    assert [len(part) for one in sent for part in one["rounds"]] == [
        len(part) for one in local for part in one.rounds
    ]
    assert [len(one["spans"]) for one in sent] == [rounds, rounds]
