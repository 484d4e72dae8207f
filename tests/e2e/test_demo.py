"""The whole pipeline through the command line, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from hgkd_edge.cells import milliseconds
from hgkd_edge.files import file_sha256


def test_the_demo_goes_from_images_to_a_latency_and_beats_the_untrained_network(
    tmp_path: Path,
) -> None:
    # Fewer epochs and views than the demo's, so that the tests stay fast; the rest is the same.
    command = [
        sys.executable,
        "-m",
        "hgkd_edge",
        "demo",
        "--set",
        "train.epochs=1",
        "--set",
        "train.warmup_epochs=0.5",
        "--set",
        "teacher.cache=1",
    ]

    done = subprocess.run(
        [*command, "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=400
    )

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    scores, held_out = result["evaluation"], result["held_out"]
    assert scores["photos"] == {"train": 1628, "test": 372}
    assert scores["distilled"]["linear_probe"] > scores["untrained"]["linear_probe"] + 0.03
    assert scores["distilled"]["linear_probe"] > scores["majority"] + 0.1
    assert held_out["student"] > held_out["mean_token"] + 0.02
    assert result["sparse_to_dense"] < 1e-3
    assert result["export"]["verification"]["passed"]
    assert result["export"]["engine"]["size_bytes"] > 1_000_000
    assert 0 < result["latency"]["p50_ms"] <= result["latency"]["p99_ms"]
    run = tmp_path / result["run"]
    assert (tmp_path / "runs" / "latest").resolve() == run.resolve()
    for name, artifact in json.loads((run / "manifest.json").read_text())["artifacts"].items():
        assert artifact["sha256"] == file_sha256(run / name), name
    for name in ("recipe.yaml", "log.jsonl", "evaluation.json", "export.json", "bench.json"):
        assert (run / name).is_file(), name
    page = subprocess.run(
        [*command[:3], "report"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert page.stdout.strip() == f"report: {result['run']}/report.html", page.stderr
    text = (run / "report.html").read_text()
    probe = f"{100 * scores['distilled']['linear_probe']:.1f}"
    for shown in (probe, ">agrees<", milliseconds(result["latency"]["p50_ms"]), "ort-cpu"):
        assert shown in text, shown
