"""`compare`: matching rows, groups that are compared, and no repeated measurements."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from exporters.network_files import network_digest
from hgkd_edge.bench.environment import environment
from hgkd_edge.bench.records import BenchFile, Session, Settings, save_session
from hgkd_edge.comparison import measuring
from hgkd_edge.comparison.artifacts import artifacts_of
from hgkd_edge.comparison.compare_runs import compare_runs
from hgkd_edge.comparison.rows import Comparison, Row
from hgkd_edge.comparison.view import comparison_lines, write_plot
from hgkd_edge.console import make_console
from hgkd_edge.errors import DeviceError, RunError
from hgkd_edge.manifest_record import Circumstances, ManifestRecord, SplitRecord
from hgkd_edge.recipe import Recipe
from hgkd_edge.records import Images
from hgkd_edge.report import report
from hgkd_edge.rundir import RunDir
from tests.bench.conftest import build_convnet

HERE = {"cpu": environment().cpu, "usable_cores": 2}
JETSON = {"cpu": "ARMv8", "device": "Jetson Orin Nano", "is_jetson": True, "power_mode": "15W"}
IMAGES = {"split": "test", "images": 200, "fingerprint": "f" * 64}
FILES = {"fp32.onnx": 3, "fp16.onnx": 2, "int8-cpu.onnx": 1}  # name -> layers


@pytest.fixture
def run(tiny_recipe: dict[str, Any], tmp_path: Path) -> RunDir:
    return fine_tuned(tiny_recipe, tmp_path / "shop")


def fine_tuned(recipe: dict[str, Any], path: Path) -> RunDir:
    """A run with a model and three exported files, recorded as `export` does."""
    run = RunDir.create(Recipe.model_validate(recipe), path)
    run.model_file.write_bytes(b"weights of " + path.name.encode())
    run.add_artifact(run.model_file)
    run.export_dir.mkdir()
    entries = [add_file(run, ending, layers) for ending, layers in FILES.items()]
    run.export_file.write_text(json.dumps({"files": entries}))
    return run


def add_file(run: RunDir, ending: str, layers: int) -> dict[str, Any]:
    name = run.path.name
    file = run.export_dir / f"{name}.{ending}"
    stated = {"hgkd_edge.weights_sha256": json.dumps(network_digest(run.model_file))}
    onnx.save(build_convnet(layers=layers, side=8, metadata=stated), file)
    run.add_artifact(file)
    source = "model.safetensors" if ending == "fp32.onnx" else f"{name}.fp32.onnx"
    return {
        **{"kind": "onnx", "path": f"elsewhere/{file.name}", "precision": ending[:4]},
        **{"made_from": source, "size_bytes": file.stat().st_size},
        "verified_on": {"split": "test", "photos": 16},
        "verification": {
            **{"passed": True, "cosine": 0.999, "top1_agreement": 0.98, "iou": None},
            **{"max_abs_error": 0.1, "precision": ending[:4]},
        },
    }


def digest(run: RunDir, ending: str) -> str:
    plain = ending == "model.safetensors"
    return network_digest(run.model_file if plain else run.export_dir / f"{run.path.name}.{ending}")


def score(run: RunDir, ending: str, points: float, **other: Any) -> dict[str, Any]:
    one = {"sha256": digest(run, ending), "runtime": "ort-cpu", "metric": "top1"}
    return {**one, "points": points, "on": IMAGES, "by": "compare", **other}


def keep(run: RunDir, **points: float) -> None:
    """Scores by the start of a file's name."""
    named = {ending: p for ending in FILES for key, p in points.items() if ending.startswith(key)}
    scores = [score(run, ending, p) for ending, p in named.items()]
    run.scores_file.write_text(json.dumps({"scores": scores}))


def measure(
    run: RunDir,
    *,
    target: str = "cpu",
    machine: dict[str, Any] = HERE,
    runner: str = "ort-cpu",
    verified: bool | None = None,
    precision: str | None = None,
    **p50: float,
) -> None:
    """Record a session, with a time for each file whose name starts with a key."""
    timed = {ending: ms for ending in FILES for key, ms in p50.items() if ending.startswith(key)}
    session = {
        **{"target": target, "created": f"2026-11-28T10:00:00 {target}", "tool_version": "1"},
        **{"settings": {"batches": [1], "threads": [None]}, "environment": machine},
        "models": [
            {"label": e, "path": e, "sha256": digest(run, e), "size_mb": 1, "precision": e[:4]}
            for e in timed
        ],
        "measurements": [
            one_measurement(ending, ms, runner, precision or ending[:4], verified)
            for ending, ms in timed.items()
        ],
    }
    save_session(run.path / "bench.json", Session.model_validate(session))


def one_measurement(
    ending: str, ms: float, runner: str, precision: str, verified: bool | None
) -> dict[str, Any]:
    times = dict.fromkeys(("mean", "min", "p50", "p90", "p95", "p99", "max"), ms)
    proof = {
        **{"images": 16, "source": "images", "reference": "", "bound": "int8"},
        **{"most_relative_error": None, "least_cosine": 0.9, "relative_error": 0.0},
        **{"cosine": 0.995, "top1": 1.0, "passed": verified},
    }
    return {
        **{"case": f"{ending} {runner} b1", "model": ending, "runner": runner, "batch": 1},
        **{"runner_version": "1", "backend": "x", "precision": precision, "threads": None},
        **{"copies": "in", "inputs": [], "throughput_ips": 1000 / ms, "first_inference_ms": None},
        **{"load_ms": None, "build_ms": None, "host_memory_mb": None, "engine_mb": None},
        "latency_ms": {**times, "count": 9, "std": 0, "mean_ci95": [ms, ms]},
        "warmup": {"runs": 1, "seconds": 0.1, "stable": True},
        **{"measured_s": 1, "rounds_p50_ms": [ms, ms]},
        "noise": {"spread": 0, "drift": 0, "noisy": False},
        "verification": None if verified is None else proof,
    }


def compared(*runs: RunDir, **options: Any) -> Comparison:
    return compare_runs(runs, score=False, **options)


def rows_on(found: Comparison, device: str) -> dict[str, Row]:
    """Rows of the one group whose device has this in its name; "" for those without times."""
    (group,) = [g for g in found.groups if (device in g.on.device if device else not g.on.device)]
    return {row.file.split(".", 1)[1]: row for row in group.rows}


def test_score_times_and_size_of_a_file_meet_in_one_row(run: RunDir) -> None:
    keep(run, fp32=90, fp16=89.9, int8=88)
    measure(run, fp32=4, fp16=3, int8=1)

    rows = rows_on(compared(run), "CPU")

    shown = {name: (row.score, row.p50_ms, row.cosine) for name, row in rows.items()}
    assert shown == {
        "fp32.onnx": (90, 4, 0.999),
        "fp16.onnx": (89.9, 3, 0.999),
        "int8-cpu.onnx": (88, 1, 0.999),
    }
    assert rows["fp32.onnx"].size_mb > rows["int8-cpu.onnx"].size_mb > 0


@pytest.mark.parametrize(
    ("points", "times", "front"),
    [
        ((90, 89, 88), (4, 3, 1), {"fp32.onnx", "fp16.onnx", "int8-cpu.onnx"}),
        ((90, 90, 88), (4, 3, 1), {"fp16.onnx", "int8-cpu.onnx"}),
        ((90, 89, 88), (1, 3, 4), {"fp32.onnx"}),
        ((90, 90, 90), (2, 2, 2), {"fp32.onnx", "fp16.onnx", "int8-cpu.onnx"}),
    ],
)
def test_the_front_holds_what_nothing_else_beats(
    run: RunDir, points: tuple[float, ...], times: tuple[float, ...], front: set[str]
) -> None:
    keys = ("fp32", "fp16", "int8")
    keep(run, **dict(zip(keys, points, strict=True)))
    measure(run, **dict(zip(keys, times, strict=True)))

    rows = rows_on(compared(run), "CPU")

    assert {name for name, row in rows.items() if row.front} == front


def test_every_device_has_its_own_rows_and_its_own_front(run: RunDir) -> None:
    keep(run, fp32=90, fp16=89, int8=88)
    measure(run, fp32=4, fp16=5, int8=6)
    measure(run, target="orin", machine=JETSON, runner="tensorrt", verified=True, fp32=3, int8=1)

    found = compared(run)

    jetson, here = rows_on(found, "Jetson Orin Nano, 15W"), rows_on(found, "CPU")
    assert [row.p50_ms for row in jetson.values()] == [3, 1]
    assert {name for name, row in jetson.items() if row.front} == {"fp32.onnx", "int8-cpu.onnx"}
    assert {name for name, row in here.items() if row.front} == {"fp32.onnx"}
    assert all(row.score_elsewhere for row in jetson.values())
    assert not any(row.score_elsewhere for row in here.values())


@pytest.mark.parametrize(
    ("verified", "precision", "scored"),
    [
        (True, None, True),
        (None, None, False),  # no proof that the engine matches the file
        (True, "fp16", False),  # an engine of another precision than the file that was scored
    ],
)
def test_a_score_from_elsewhere_stands_for_verified_outputs_of_the_same_precision(
    run: RunDir, verified: bool | None, precision: str | None, scored: bool
) -> None:
    keep(run, fp32=90)
    options = {"target": "orin", "machine": JETSON, "runner": "tensorrt"}
    measure(run, **options, verified=verified, precision=precision, fp32=3)  # type: ignore[arg-type]

    row = rows_on(compared(run), "orin")["fp32.onnx"]

    assert (row.score, row.score_elsewhere) == ((90, True) if scored else (None, False))
    assert row.cosine == (0.995 if verified else None), "the device's own, or none"


def test_wrong_outputs_are_no_row(run: RunDir) -> None:
    measure(run, verified=False, fp32=3)

    found = compared(run)

    assert set(rows_on(found, "")) >= {"fp32.onnx"}
    assert any("computed wrong outputs" in line for line in found.remarks)


def change_file(run: RunDir) -> None:
    onnx.save(build_convnet(width=4, layers=1, side=8), run.export_dir / "shop.int8-cpu.onnx")


def export_again(run: RunDir) -> None:
    change_file(run)
    run.add_artifact(run.export_dir / "shop.int8-cpu.onnx")


def fine_tune_again(run: RunDir) -> None:
    run.model_file.write_bytes(b"new weights")
    for ending in ("fp32.onnx", "fp16.onnx"):
        add_file(run, ending, layers=2)


def fail_verification(run: RunDir) -> None:
    record = json.loads(run.export_file.read_text())
    record["files"][2]["verification"]["passed"] = False
    run.export_file.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        (change_file, "shop.int8-cpu.onnx: has changed since it was exported"),
        (export_again, "int8-cpu.onnx ort-cpu b1 on CPU"),
        (fine_tune_again, "shop.int8-cpu.onnx: was exported from an earlier model.safetensors"),
        (fail_verification, "shop.int8-cpu.onnx: failed verification"),
    ],
)
def test_figures_of_a_file_that_is_another_one_by_now_are_in_no_row(
    run: RunDir, since: Any, expected: str
) -> None:
    keep(run, fp32=90, fp16=90, int8=88)
    measure(run, fp32=4, fp16=3, int8=1)
    since(run)

    found = compared(run)

    rows = [row for group in found.groups for row in group.rows if "int8" in row.file]
    assert [(row.score, row.p50_ms) for row in rows] in ([], [(None, None)])
    assert any(expected in line for line in found.remarks)


def finetuned(run: RunDir, photos: int = 200, fingerprint: str = IMAGES["fingerprint"]) -> None:
    result = {"metric": "top1", "scores": {"top1": 0.9}, "split": "test", "photos": photos}
    run.finetune_result_file.write_text(json.dumps(result))
    test = SplitRecord(photos=photos, fingerprint=fingerprint)
    run.update_manifest(ManifestRecord(finetune=Circumstances(data={"test": test})))


def evaluated(run: RunDir) -> None:
    result = {"metric": "top1", "scores": {"top1": 0.9}, "split": "test", "photos": 200}
    result |= {"sha256": digest(run, "fp16.onnx"), "runtime": "ONNX Runtime"}
    result |= {"fingerprint": IMAGES["fingerprint"]}
    (run.path / "evaluation.json").write_text(json.dumps(result))


def exported(run: RunDir) -> None:
    record = json.loads(run.export_file.read_text())
    accuracy = {"metric": "top1", "score": 90.0, "float_score": 91.0, "on": IMAGES}
    record["files"][2]["accuracy"] = accuracy
    run.export_file.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("by", "points"),
    [
        (finetuned, {"model.safetensors": 90}),
        (evaluated, {"fp16.onnx": 90}),
        (exported, {"fp32.onnx": 91, "int8-cpu.onnx": 90}),
    ],
)
def test_scores_that_other_commands_recorded_are_used(
    run: RunDir, by: Any, points: dict[str, float]
) -> None:
    by(run)

    found = compared(run)

    rows = {row.file.removeprefix("shop."): row for row in found.groups[0].rows}
    assert {name: row.score for name, row in rows.items() if row.score is not None} == points
    assert {row.scored_by.split(" ")[0] for row in rows.values() if row.scored_by} == {
        {"finetuned": "finetune", "evaluated": "evaluate", "exported": "export"}[by.__name__]
    }


@pytest.mark.parametrize("other", [{"photos": 5000}, {"fingerprint": "0" * 64}])
def test_scores_on_other_images_are_never_compared(run: RunDir, other: dict[str, Any]) -> None:
    finetuned(run, **other)
    keep(run, fp32=90, fp16=89)

    rows = {row.file.removeprefix("shop."): row for row in compared(run).groups[0].rows}

    assert rows["model.safetensors"].score is None
    assert rows["fp32.onnx"].score == 90


def test_int8_that_is_not_faster_than_fp16_is_warned_of_on_that_device_alone(run: RunDir) -> None:
    measure(run, fp16=2, int8=2.5)
    measure(run, target="orin", machine=JETSON, runner="tensorrt", verified=True, fp16=2, int8=1)

    warnings = compared(run).warnings

    assert len(warnings) == 1
    assert "shop.int8-cpu.onnx is not faster than shop.fp16.onnx in ort-cpu on CPU" in warnings[0]


@pytest.mark.parametrize(("asked", "warned"), [(1.0, ["int8"]), (0.1, ["fp16", "int8"]), (3, [])])
def test_a_file_that_loses_more_than_asked_is_warned_of(
    run: RunDir, asked: float, warned: list[str]
) -> None:
    keep(run, fp32=90, fp16=89.5, int8=88)

    warnings = compared(run, max_drop=asked).warnings

    assert [line.split(".")[1][:4] for line in warnings] == warned


def test_runs_are_side_by_side_and_only_compared_on_the_same_images(
    run: RunDir, tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    other = fine_tuned(tiny_recipe, tmp_path / "big")
    for one, points, ms in ((run, 90, 2), (other, 95, 1)):
        keep(one, fp32=points)
        measure(one, fp32=ms)

    same = compared(run, other)
    record = json.loads(other.scores_file.read_text())
    record["scores"][0]["on"]["fingerprint"] = "0" * 64
    other.scores_file.write_text(json.dumps(record))
    apart = compared(run, other)

    (timed,) = [group for group in same.groups if group.on.device]
    assert [(row.file, row.front) for row in timed.rows] == [
        ("shop.fp32.onnx", False),
        ("big.fp32.onnx", True),
    ]
    assert [row.front for group in apart.groups if group.on.device for row in group.rows] == [
        True,
        True,
    ]


def test_files_without_a_score_are_scored_once_in_their_own_runtime(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(run, fp32=90)
    asked = []

    def subject(of: RunDir) -> Any:
        def points(runner: Any) -> float:
            asked.append(runner(np.zeros((2, 3, 8, 8), np.float32))["features"].shape)
            return 80.0

        return SimpleNamespace(
            network=torch.nn.Sequential(
                torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(3, 16)
            ),
            output_names=("features",),
            metric="top1",
            score=points,
            unseen="test",
            scored_on=Images(**IMAGES),
            images=lambda _split, _count: np.random.rand(8, 3, 8, 8).astype(np.float32),
        )

    monkeypatch.setattr("hgkd_edge.exportable.load_exportable", subject)

    first = compare_runs([run])
    second = compare_runs([run])

    rows = {row.file.removeprefix("shop."): row for row in first.groups[0].rows}
    assert rows["fp32.onnx"].score == 90, "recorded, so not taken again"
    assert rows["int8-cpu.onnx"].score == 80
    assert asked == [(2, 16)] * 3, "weights, FP16 and INT8, each once"
    assert second.groups == first.groups


def test_only_devices_with_something_missing_are_measured_and_as_before(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(measuring, "run_bench", lambda options, progress: asked.append(options))
    monkeypatch.setattr(measuring, "list_runners", lambda: [("ort-cpu", None)])
    measure(run, fp32=4, fp16=3)
    record = BenchFile.model_validate_json((run.path / "bench.json").read_text())
    settings = Settings(batches=[1, 8], threads=[2], duration_s=1.5, copies="out")
    session = record.sessions[0].model_copy(update={"settings": settings})
    save_session(run.path / "bench.json", session)

    measuring.measure_missing(run, lambda _what, _part: None)
    measure(run, fp32=4, fp16=3, int8=1)
    measuring.measure_missing(run, lambda _what, _part: None)

    (options,) = asked
    assert (options.device, options.models) == ("cpu", (run.path,))
    assert (options.batches, options.threads, options.duration_s) == ((1, 8), (2,), 1.5)
    assert options.copies == "out"


def test_what_cannot_be_measured_is_reported_and_the_rest_is_shown(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(options: Any, progress: Any) -> None:
        raise DeviceError("nothing can run here")

    monkeypatch.setattr(measuring, "run_bench", refuse)

    failed = measuring.measure_missing(run, lambda _what, _part: None)

    assert failed == ["not measured on cpu: nothing can run here"]


def test_a_run_with_nothing_exported_says_what_to_do(run: RunDir) -> None:
    run.export_file.unlink()

    with pytest.raises(RunError, match="nothing to compare: .* no fp32 ONNX file") as failed:
        compared(run)

    assert failed.value.hint.startswith("hgkd-edge export ")
    assert artifacts_of(run).artifacts == []


@pytest.mark.parametrize("record", ["scores.json", "evaluation.json", "finetune.json"])
def test_a_damaged_record_is_one_clear_line(run: RunDir, record: str) -> None:
    content = {"scores": [{}], "sha256": "x", "photos": "many"}
    (run.path / record).write_text(json.dumps(content))

    with pytest.raises(RunError, match="damaged"):
        compared(run)


def test_commands_that_measure_name_the_runs(run: RunDir) -> None:
    keep(run, fp32=90, fp16=89, int8=88)
    measure(run, fp32=3, fp16=2, int8=1)
    change_file(run)
    export_again(run)

    found = compared(run)

    lines = [str(line) for line in comparison_lines(found)]
    rest = f"to measure the rest on this machine: hgkd-edge compare {run.path} --measure"
    assert rest in lines
    assert any(line.endswith(f"measure again: hgkd-edge bench {run.path}") for line in lines)


def test_tables_fit_80_columns_and_hold_no_control_sequences(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(run, fp32=90, fp16=89, int8=88)
    measure(run, fp32=1234, fp16=345.6, int8=0.0123)
    found = compared(run)

    console = make_console(width=80)
    for line in comparison_lines(found):
        console.print(line)

    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "\x1b" not in shown
    assert "89.00" in shown
    assert "front" in shown
    assert "--measure" not in shown, "nothing that bench can measure is missing"


def test_the_plot_has_a_point_for_every_scored_row_and_is_an_svg(
    run: RunDir, tmp_path: Path
) -> None:
    keep(run, fp32=90, fp16=89)
    measure(run, fp32=3, fp16=2, int8=1)

    file = write_plot(compared(run), tmp_path / "plot.svg")

    assert file is not None
    picture = file.read_text()
    assert picture.count("<circle") == 2
    assert "fp16.onnx ort-cpu" in picture
    assert write_plot(replace(compared(run), groups=[]), tmp_path / "none.svg") is None


def test_the_report_shows_what_is_recorded_and_takes_no_score(run: RunDir) -> None:
    keep(run, fp32=90, int8=80)
    measure(run, fp32=3, int8=1)

    page = report(run).read_text()

    assert "Which file to deploy</h2>" in page
    assert page.count('class="badge good">front') == 2
    assert "loses 10.00 points of top1 on 200 images" in page
