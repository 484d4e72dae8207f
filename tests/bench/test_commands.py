"""`bench` and `devices` as commands, comparison of two files, and the torch runner."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hgkd_edge.api.measuring import measure_pipeline
from hgkd_edge.bench.compare import compare_files
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.run import run_bench
from hgkd_edge.cli.bench import bench
from hgkd_edge.cli.devices import devices
from hgkd_edge.errors import DataError, DeviceError, RunError, UserError

MakeModel = Callable[..., Path]


def invoke(command: Callable[..., None], *arguments: str) -> str:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_json_on_standard_output_is_the_record_and_nothing_else(make_model: MakeModel) -> None:
    model = make_model()

    data = json.loads(invoke(bench, str(model), "--duration", "0.1", "--json"))

    assert data["file"] == str(model.parent / "bench.json")
    assert data["sessions"][0]["measurements"][0]["latency_ms"]["count"] >= 20


def test_the_command_sweeps_and_prints_a_table(make_model: MakeModel) -> None:
    text = invoke(
        bench, str(make_model()), "--batch", "1,2", "--threads", "1,2", "--duration", "0.1",
        "--copies", "out",
    )  # fmt: skip

    assert text.count("ort-cpu  fp32") == 4
    assert "copies not included" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--device", "tpu"], "--device 'tpu' is not known"),
        (["--copies", "maybe"], "--copies 'maybe'"),
        (["--batch", "0"], "--batch '0'"),
        (["--duration", "0"], "--duration must be finite and above 0, not 0"),
        (["--duration", "nan"], "--duration must be finite and above 0, not nan"),
        (["--duration", "inf"], "--duration must be finite and above 0, not inf"),
        (["--rounds", "0"], "--rounds 0"),
        (["--rounds", "10001"], "--rounds 10,001 is too high"),
        (["--count", "1000000000"], "--count 1,000,000,000 is too high"),
        (["--resume"], "--resume: only with --host, --hosts or --device jetson"),
        (["--ssh-config", "config"], "--ssh-config: only with --host or --hosts"),
        (["--on", "orin-nano"], "--on: only with --estimate"),
        (["--precision", "fp64"], "--precision 'fp64'"),
        (["--estimate", "--precision", "bf16"], "--estimate has no figures for bf16"),
        (["--device", "cuda"], "nothing can run on --device cuda"),
        (["--host", "a", "--hosts", "b"], "--host and --hosts"),
        (["--host", "h", "--runner", "ort-cpu"], "--runner chooses among"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    make_model: MakeModel, arguments: list[str], expected: str
) -> None:
    with pytest.raises(DeviceError) as refusal:
        invoke(bench, str(make_model()), *arguments)

    assert expected in refusal.value.message
    assert "\n" not in refusal.value.message
    assert refusal.value.hint


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--compare", "a", "b", "--device", "cuda"], "--device: no effect with --compare"),
        (["--pipeline", "x", "--host", "a", "--batch", "8"], "--host, --batch: no effect with"),
        (["--estimate", "--threads", "2"], "--threads: no effect with --estimate"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused(
    arguments: list[str], expected: str
) -> None:
    with pytest.raises(DataError) as refusal:
        invoke(bench, *arguments)

    assert expected in refusal.value.message
    assert "\n" not in refusal.value.message


def test_the_highest_numbers_and_a_build_on_a_jetson_are_right_options() -> None:
    BenchOptions(device="jetson", resume=True)
    BenchOptions(host="orin", resume=True, ssh_config="config", rounds=10_000, count=10**7)


@pytest.mark.parametrize("place", ["{0}/bench.json", "/proc/bench.json", "{0}", "folder"])
def test_a_result_that_could_not_be_kept_is_not_measured(
    make_model: MakeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "hgkd_edge.bench.run.measure_here", lambda *_, **__: pytest.fail("measured")
    )
    model = make_model()

    with pytest.raises(UserError) as refusal:
        invoke(bench, str(model), "--out", place.format(model))

    assert refusal.value.exit_code == 2
    assert place.format(model) in refusal.value.message


def test_the_times_of_a_pipeline_that_could_not_be_kept_are_not_measured() -> None:
    with pytest.raises(UserError, match="cannot write '/proc/times.json'"):
        measure_pipeline([], out="/proc/times.json")


def test_devices_lists_boards_and_what_runs_here() -> None:
    text = invoke(devices)
    data = json.loads(invoke(devices, "--json"))

    assert max(map(len, text.splitlines())) <= 80
    assert "agx-orin-64" in text
    assert "ort-cpu" in text
    assert len(data["devices"]) == 11
    assert {one["name"] for one in data["runners"] if one["refusal"] is None} >= {"ort-cpu"}


def test_two_files_are_compared_case_by_case(make_model: MakeModel, tmp_path: Path) -> None:
    small, big = make_model("x/net", width=8), make_model("y/net", width=64, layers=6)
    for model, name, batches in ((small, "a", (1, 2)), (big, "b", (1, 4))):
        run_bench(
            BenchOptions(models=(model,), batches=batches, duration_s=0.2, out=tmp_path / name)
        )

    comparison = compare_files(tmp_path / "a", tmp_path / "b")
    text = invoke(bench, "--compare", str(tmp_path / "a"), str(tmp_path / "b"))

    [row] = comparison.rows
    assert row.ratio == pytest.approx(row.b_p50_ms / row.a_p50_ms)
    assert row.ratio > 3
    assert row.beyond_noise
    assert "model file changed" in row.differs
    assert [comparison.only_a, comparison.only_b] == [1, 1]
    assert f"{row.ratio:.2f}x" in text
    assert "cases only in a: 1; only in b: 1" in text


def test_a_file_compared_with_itself_is_within_noise(make_model: MakeModel, tmp_path: Path) -> None:
    run_bench(BenchOptions(models=(make_model(),), duration_s=0.1, out=tmp_path / "a"))

    [row] = compare_files(tmp_path / "a", tmp_path / "a").rows

    assert (row.ratio, row.beyond_noise) == (1, False)
    assert not [note for note in row.differs if "noisy" not in note]


def test_files_without_a_common_case_are_refused(make_model: MakeModel, tmp_path: Path) -> None:
    for name in ("p", "q"):
        run_bench(BenchOptions(models=(make_model(name),), duration_s=0.1, out=tmp_path / name))

    with pytest.raises(RunError, match="no case in common"):
        compare_files(tmp_path / "p", tmp_path / "q")
    with pytest.raises(RunError, match="No such file"):
        compare_files(tmp_path / "p", tmp_path / "missing")


def test_apples_and_oranges_are_refused_with_what_each_file_holds(
    make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model()
    for name, changes in (("a", {"batches": (1,)}), ("b", {"batches": (8,), "copies": "out"})):
        run_bench(
            BenchOptions(models=(model,), duration_s=0.1, out=tmp_path / name, **changes)  # type: ignore[arg-type]
        )

    with pytest.raises(RunError) as refusal:
        compare_files(tmp_path / "a", tmp_path / "b")

    assert "cpu net ort-cpu b1 fp32 copies in" in refusal.value.message
    assert "cpu net ort-cpu b8 fp32 copies out" in refusal.value.message


def test_whatever_else_changed_between_two_files_is_reported(
    make_model: MakeModel, tmp_path: Path
) -> None:
    run_bench(BenchOptions(models=(make_model(),), duration_s=0.1, out=tmp_path / "a"))
    data = json.loads((tmp_path / "a").read_text())
    [session] = data["sessions"]
    [one] = session["measurements"]
    one["noise"]["noisy"] = False
    (tmp_path / "a").write_text(json.dumps(data))
    session["environment"] |= {"cpu": "another", "usable_cores": 64}
    one["runner_version"] = "0.1"
    one["inputs"][0]["source"] = "images"
    one["noise"]["noisy"] = True
    one["details"]["inference_precision"] = "bf16"
    (tmp_path / "b").write_text(json.dumps(data))

    [row] = compare_files(tmp_path / "a", tmp_path / "b").rows

    changed = [note.split(":")[0] for note in row.differs]
    assert changed == [
        "ort-cpu version", "cpu", "usable_cores", "input", "inference_precision", "b was noisy"
    ]  # fmt: skip


def test_an_estimate_is_never_compared_as_a_measurement(
    make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model()
    invoke(bench, str(model), "--estimate")

    with pytest.raises(RunError, match=r"not a bench\.json"):
        compare_files(model.parent / "bench-estimate.json", model.parent / "bench-estimate.json")


def test_the_torch_runner_measures_the_runs_module_next_to_its_export(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    model = make_model("run/export/net")
    run = model.parent.parent
    (run / "recipe.yaml").write_text("name: x\n")
    asked: list[Path] = []

    def load(folder: Path) -> object:
        asked.append(folder)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU())

    monkeypatch.setattr("hgkd_edge.api.measuring._load_torch", load)

    invoke(
        bench, str(run), "--runner", "ort-cpu,torch", "--duration", "0.1",
        "--threads", "1,2",
    )  # fmt: skip

    assert asked == [run, run]
    [session] = json.loads((run / "bench.json").read_text())["sessions"]
    assert [(one["runner"], one["threads"]) for one in session["measurements"]] == [
        ("ort-cpu", 1), ("ort-cpu", 2), ("torch", 1), ("torch", 2)
    ]  # fmt: skip


def test_the_torch_runner_without_a_module_says_what_it_needs(make_model: MakeModel) -> None:
    pytest.importorskip("torch")

    with pytest.raises(DeviceError, match="no PyTorch module for 'net'"):
        invoke(bench, str(make_model()), "--runner", "torch")
