"""End to end on this machine: from a file to bench.json and the table."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from exporters.errors import ExportError
from exporters.runtimes import RUNTIMES, Options
from exporters.runtimes.ort import OrtSession
from hgkd_edge.bench import local
from hgkd_edge.bench.inputs import load_images
from hgkd_edge.bench.models import resolve_models
from hgkd_edge.bench.options import BenchOptions, parse_counts
from hgkd_edge.bench.records import BenchFile, load_bench
from hgkd_edge.bench.run import run_bench
from hgkd_edge.bench.tables import comparison_view, fleet_view, session_view
from hgkd_edge.cells import Name, milliseconds
from hgkd_edge.console import make_console
from hgkd_edge.errors import DeviceError, RunError

from .conftest import build_convnet, quantized

MakeModel = Callable[..., Path]


def quick(*models: Path, **changes: object) -> BenchOptions:
    return BenchOptions(models=models, **{"duration_s": 0.1, "rounds": 2, **changes})  # type: ignore[arg-type]


def rendered(view: object, width: int = 80) -> str:
    console = make_console(width=width, record=True, file=io.StringIO())
    console.print(view)
    return console.export_text()


def test_bench_json_holds_all_that_is_needed_to_repeat_the_run(make_model: MakeModel) -> None:
    path = make_model()

    result = run_bench(quick(path, batches=(1, 2), threads=(1, 2)))

    assert result.file == path.parent / "bench.json"
    [session] = load_bench(result.file).sessions
    assert [(m.batch, m.threads) for m in session.measurements] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert session.settings.duration_s == 0.1
    assert session.models[0].sha256
    assert session.models[0].precision == "fp32"
    assert session.environment.cpu
    assert session.environment.packages["onnxruntime"]
    one = session.measurements[0]
    assert one.latency_ms.count >= 20
    assert one.throughput_ips == pytest.approx(1000 / one.latency_ms.mean, rel=1e-6)
    assert one.inputs[0].shape == [1, 3, 32, 32]
    assert one.inputs[0].source == "synthetic"
    assert one.load_ms is not None
    assert one.first_inference_ms is not None


def test_the_first_case_is_the_base_of_every_ratio(make_model: MakeModel) -> None:
    small, big = make_model("small", width=8), make_model("big", width=64, layers=6)

    [session] = run_bench(quick(small, big)).sessions

    assert session.measurements[0].ratio.median == 1
    assert session.measurements[1].ratio.median > 3
    assert "small" in session.measurements[1].ratio.to


def test_of_a_folder_fp32_is_the_base_and_what_failed_verification_is_not_measured(
    make_model: MakeModel, tmp_path: Path
) -> None:
    baked = {"hgkd_edge.baked": '["preprocessing"]'}
    for name, changes in (
        ("run.fp16", {"dtype": np.float16}),
        ("run.fp32.baked", {"metadata": baked}),
        ("run.fp32", {}),
        ("run.int8-cpu.failed-verification", {}),
    ):
        onnx.save(build_convnet(**changes), tmp_path / f"{name}.onnx")  # type: ignore[arg-type]
    failed = tmp_path / "run.int8-cpu.failed-verification.onnx"

    found = [model.label for model in resolve_models([tmp_path])]
    named = [model.label for model in resolve_models([failed, tmp_path])]

    assert found == ["run.fp32", "run.fp16", "run.fp32.baked"]
    assert named == [failed.stem, *found]
    for file in tmp_path.glob("*.onnx"):
        if file != failed:
            file.unlink()
    with pytest.raises(RunError, match="failed its verification") as caught:
        resolve_models([tmp_path])
    assert str(failed) in caught.value.hint


def test_real_images_are_fed_when_given_and_the_record_says_so(make_model: MakeModel) -> None:
    images = np.random.default_rng(0).random((3, 3, 32, 32), dtype=np.float32)

    [session] = run_bench(quick(make_model(), images=images, batches=(4,))).sessions

    fed = session.measurements[0].inputs[0]
    assert (fed.source, fed.shape, fed.seed) == ("images", [4, 3, 32, 32], None)


def test_images_that_export_kept_are_fed_to_each_model_that_takes_their_size(
    make_model: MakeModel,
) -> None:
    run = make_model("run/export/net").parent.parent
    make_model("run/export/small", side=16)
    (run / "recipe.yaml").write_text("name: x\n")
    images = np.random.default_rng(0).random((3, 3, 32, 32), dtype=np.float32)
    np.save(run / "export" / "images.npy", images)

    [session] = run_bench(quick(run)).sessions

    fed = {one.model: one.inputs[0].source for one in session.measurements}
    assert fed == {"net": "images", "small": "synthetic"}
    assert session.settings.images is not None


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (None, "No such file"),
        (b"no array", "not a .npy file"),
        (np.zeros((2, 3, 4, 4)), r"float64\[2, 3, 4, 4\], not f32"),
        (np.zeros((0, 3, 4, 4), np.float32), "empty"),
        (np.full((1, 3, 4, 4), np.nan, np.float32), "not finite"),
    ],
)
def test_images_that_cannot_be_fed_are_refused(tmp_path: Path, made: object, reason: str) -> None:
    file = tmp_path / "images.npy"
    if isinstance(made, bytes):
        file.write_bytes(made)
    elif made is not None:
        np.save(file, made)

    with pytest.raises(RunError, match=rf"images '.*images\.npy': .*{reason}"):
        load_images(file)


@pytest.mark.parametrize("copies", ["in", "out"])
@pytest.mark.parametrize("runner", ["ort-cpu", "openvino"])
def test_every_runner_takes_copies_in_and_out(
    make_model: MakeModel, runner: str, copies: str
) -> None:
    if runner == "openvino":
        pytest.importorskip("openvino")

    [session] = run_bench(quick(make_model(), runners=(runner,), copies=copies)).sessions

    assert session.measurements[0].copies == copies
    side = "included" if copies == "in" else "not included"
    assert f"copies {side};" in rendered(session_view(session))


def test_another_target_is_added_and_the_same_target_replaced(make_model: MakeModel) -> None:
    pytest.importorskip("openvino")
    path = make_model()

    run_bench(quick(path))
    run_bench(quick(path, device="openvino"))
    last = run_bench(quick(path, batches=(2,)))

    file = load_bench(last.file)
    assert sorted(session.target for session in file.sessions) == ["cpu", "openvino"]
    [cpu] = [session for session in file.sessions if session.target == "cpu"]
    assert [one.batch for one in cpu.measurements] == [2]


def test_a_run_folder_gets_its_bench_json_and_a_precision_filter(make_model: MakeModel) -> None:
    make_model("run/export/net")
    path = make_model("run/export/half", dtype=np.float16)
    run = path.parent.parent
    (run / "recipe.yaml").write_text("name: x\n")
    left = run / ".bench.json.0123456789abcdef.tmp"  # by a session that was killed
    left.touch()

    result = run_bench(quick(run, precisions=("fp16",)))

    assert not left.exists()
    assert result.file == run / "bench.json"
    assert [one.model for one in result.sessions[0].measurements] == ["half"]
    with pytest.raises(RunError, match=r"no model of precision int8; found .*half\.onnx \(fp16\)"):
        run_bench(quick(run, precisions=("int8",)))


def test_a_jetson_that_is_not_there_is_refused_with_the_way_to_reach_one(
    make_model: MakeModel,
) -> None:
    with pytest.raises(DeviceError) as refusal:
        run_bench(quick(make_model(), device="jetson"))

    assert "not a Jetson" in refusal.value.message
    assert "--host user@jetson" in refusal.value.hint
    assert "--estimate" in refusal.value.hint
    assert refusal.value.exit_code == 2


def test_an_input_too_large_for_any_memory_is_refused_before_it_is_made(
    make_model: MakeModel,
) -> None:
    with pytest.raises(DeviceError, match="has more than 134,217,728 values"):
        run_bench(quick(make_model(), batches=(1_000_000,)))


@pytest.mark.parametrize("content", ["[" * 100_000, '{"schema": ' + "9" * 5_000 + "}", "\0"])
def test_a_bench_file_made_to_exhaust_the_reader_is_one_clear_error(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "bench.json").write_text(content)

    with pytest.raises(RunError, match="bench.json"):
        load_bench(tmp_path / "bench.json")


def test_a_batch_the_model_cannot_take_is_refused_by_name(make_model: MakeModel) -> None:
    with pytest.raises(DeviceError, match=r"takes batches of 1 only, not 8"):
        run_bench(quick(make_model(batch=1), batches=(8,)))


def test_free_sides_take_the_size_that_the_model_was_trained_at(tmp_path: Path) -> None:
    path = tmp_path / "free.onnx"
    model = build_convnet(side=32, metadata={"hgkd_edge.input_size": "[3, 64, 96]"})
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    onnx.save(model, path)

    [session] = run_bench(quick(path, batches=(2,))).sessions

    assert session.measurements[0].inputs[0].shape == [2, 3, 64, 96]


def test_images_of_another_size_are_refused(make_model: MakeModel) -> None:
    images = np.zeros((1, 3, 16, 16), dtype=np.float32)

    with pytest.raises(DeviceError, match=r"images are \[3, 16, 16\].*takes \[3, 32, 32\]"):
        run_bench(quick(make_model(), images=images))


def test_a_runner_that_cannot_run_says_why(make_model: MakeModel) -> None:
    with pytest.raises(DeviceError, match=r"ort-cuda.*no CUDAExecutionProvider"):
        run_bench(quick(make_model(), runners=("ort-cuda",)))
    with pytest.raises(DeviceError, match="runner 'ort-quantum' is not known"):
        run_bench(quick(make_model(), runners=("ort-quantum",)))


def test_of_a_devices_own_runners_one_that_fails_is_listed_and_the_rest_continue(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")

    def refuse(*_: object) -> None:
        raise ExportError("the driver is too old")

    monkeypatch.setitem(local._OF_DEVICE, "cpu", ("openvino", "ort-cpu"))
    monkeypatch.setitem(RUNTIMES, "openvino", replace(RUNTIMES["openvino"], open=refuse))

    [session] = run_bench(quick(make_model())).sessions

    assert [one.runner for one in session.measurements] == ["ort-cpu"]
    assert [one.reason for one in session.refusals] == ["the driver is too old"]
    assert "not measured: net openvino b1: the driver is too old" in rendered(session_view(session))
    with pytest.raises(DeviceError, match="too old"):
        run_bench(quick(make_model(), runners=("openvino", "ort-cpu")))


def test_tensorrt_is_not_expected_to_have_an_engine_of_int8_for_cpus(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = quantized(make_model(), "cpu")
    able = replace(RUNTIMES["tensorrt"], packages=(), lacks=lambda: None)
    monkeypatch.setitem(RUNTIMES, "tensorrt", able)

    [session] = run_bench(quick(model, runners=("tensorrt", "ort-cpu"))).sessions

    assert [one.runner for one in session.measurements] == ["ort-cpu"]
    assert ["flavor 'cpu'" in one.reason for one in session.refusals] == [True]
    with pytest.raises(DeviceError, match="flavor 'cpu'"):
        run_bench(quick(model, runners=("tensorrt",)))


def test_a_precision_asked_for_and_not_there_is_never_dropped_silently(
    make_model: MakeModel,
) -> None:
    with pytest.raises(RunError, match="no model of precision int8; found net"):
        run_bench(quick(make_model(), precisions=("fp32", "int8")))


def test_a_p99_of_few_runs_is_marked(make_model: MakeModel) -> None:
    few = run_bench(quick(make_model(), count=20)).sessions[0].measurements[0]
    many = run_bench(quick(make_model(), count=100)).sessions[0].measurements[0]

    assert any("p99 of 20 runs" in warning for warning in few.warnings)
    assert not any("p99" in warning for warning in many.warnings)


def test_the_first_inference_is_the_very_first_of_each_case(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []

    class StandIn(OrtSession):
        def __init__(self, source: Path, options: Options) -> None:
            super().__init__(source, options)
            self.name = source.stem
            log.append(f"open {self.name}")

        def bind(self, *_: object) -> Callable[[], object]:
            def run() -> None:
                time.sleep(0.001 if f"run {self.name}" in log else 0.03)
                log.append(f"run {self.name}")

            return run

    monkeypatch.setitem(RUNTIMES, "ort-cpu", replace(RUNTIMES["ort-cpu"], open=StandIn))

    [session] = run_bench(quick(make_model("a"), make_model("b"))).sessions

    assert log[:4] == ["open a", "run a", "open b", "run b"]
    for one in session.measurements:
        assert one.first_inference_ms is not None
        assert one.first_inference_ms >= 30 > one.latency_ms.p50


def test_memory_is_that_of_each_model_and_not_of_the_process(make_model: MakeModel) -> None:
    # The big one first, so that the small one could inherit its peak.
    models = make_model("big", width=512, layers=4, side=4), make_model("small", width=8)
    code = (
        "import sys, json; from pathlib import Path;"
        "from hgkd_edge.bench.run import BenchOptions, run_bench;"
        "r = run_bench(BenchOptions(models=tuple(map(Path, sys.argv[1:])), duration_s=0.05));"
        "print(json.dumps([m.host_memory_mb for m in r.sessions[0].measurements]))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, models)], capture_output=True, check=True
    )

    big, small = json.loads(done.stdout)
    assert big > 25  # 28 MB of weights compared with almost nothing
    assert small < 0.4 * big


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "model.onnx"
    text.write_text("hello")

    with pytest.raises(RunError, match="not a valid ONNX"):
        run_bench(quick(text))
    with pytest.raises(RunError, match="no model at"):
        run_bench(quick(tmp_path / "missing.onnx"))


@pytest.mark.parametrize("spoil", ["latency_ms", "kind", "extra"])
def test_a_file_that_breaks_the_schema_is_refused_and_names_the_place(
    make_model: MakeModel, spoil: str
) -> None:
    file = run_bench(quick(make_model())).file
    data = json.loads(file.read_text())
    one = data["sessions"][0]["measurements"][0]
    one |= {"latency_ms": {}} if spoil == "latency_ms" else {spoil: "estimate"}
    file.write_text(json.dumps(data))

    with pytest.raises(RunError, match=rf"sessions\.0\.measurements\.0\.{spoil}"):
        load_bench(file)


def test_a_broken_bench_json_is_not_overwritten(make_model: MakeModel) -> None:
    path = make_model()
    file = path.parent / "bench.json"
    file.write_text('{"schema": "hgkd-edge.bench", "version": 99}')

    with pytest.raises(RunError, match="schema version 99"):
        run_bench(quick(path))

    assert json.loads(file.read_text())["version"] == 99


def test_the_table_fits_80_columns_and_hostile_names_are_plain_text(make_model: MakeModel) -> None:
    path = make_model("a [red]name $(x); 'q' that is rather long for a table of models")

    [session] = run_bench(quick(path, batches=(1, 2), threads=(1, 2))).sessions
    text = rendered(session_view(session))

    assert max(map(len, text.splitlines())) <= 80
    assert "[red]" in text.replace("\n", "")


def test_the_json_written_is_the_json_read(make_model: MakeModel) -> None:
    result = run_bench(quick(make_model()))

    raw = json.loads(result.file.read_text())

    assert (raw["schema"], raw["version"]) == ("hgkd-edge.bench", 1)
    assert BenchFile.model_validate(raw).sessions == result.sessions


def test_a_bench_json_of_earlier_versions_still_loads(make_model: MakeModel) -> None:
    file = run_bench(quick(make_model())).file
    data = json.loads(file.read_text())
    data["sessions"][0]["environment"] = {
        "is_jetson": True, "model": "Jetson AGX Orin Developer Kit", "device_id": "agx-orin-64",
        "device": "Jetson AGX Orin Developer Kit", "l4t": "36.4.3", "jetpack": "6.2",
        "tensorrt_package": "10.3.0.30-1+cuda12.5", "power_mode": "MAXN", "power_mode_id": 0,
        "power_modes": ["MAXN"], "clocks_locked": None, "gpu_mhz": None, "temperatures_c": {},
        "machine": "aarch64", "system": "Linux 5.15", "governor": None, "loadavg": "0.1 0.2 0.3",
        "python": None, "cores": 12, "usable_cores": 12, "trtexec": "10.3.0",
    }  # fmt: skip
    data["sessions"][0]["settings"] |= {"an_option_of_then": 1}
    file.write_text(json.dumps(data))

    [session] = load_bench(file).sessions

    assert (session.is_remote, session.environment.device_id) == (True, "agx-orin-64")
    assert session.model_dump(mode="json")["settings"]["an_option_of_then"] == 1


NAMES = [
    "mobilenetv3_small_100.lamb_in1k-distilled.int8-tensorrt",
    "a_name/of_many-small.parts " * 4,
    "one-part-of-this-name-is-abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz",
]


@pytest.mark.usefixtures("already_warm")
@pytest.mark.parametrize("name", NAMES)
def test_long_names_break_at_their_separators_in_every_table(
    make_model: MakeModel, name: str
) -> None:
    from hgkd_edge.bench.compare import Comparison, Row
    from hgkd_edge.bench.devices import find_devices
    from hgkd_edge.bench.estimate import estimate_models, estimate_view

    path = make_model("net")
    [session] = run_bench(quick(path, batches=(1, 2), threads=(1, 2))).sessions
    named = [one.model_copy(update={"model": name}) for one in session.measurements]
    session = session.model_copy(update={"target": name, "measurements": named})
    [model] = resolve_models([path])
    estimate = estimate_models([model], find_devices("orin-nano-8"))[0]
    row = Row(
        target=name,
        case=f"{name} ort-cpu b1",
        a_p50_ms=1.0,
        b_p50_ms=2.0,
        ratio=2.0,
        beyond_noise=True,
        differs=[],
    )
    comparison = Comparison(a="a", b="b", rows=[row], only_a=0, only_b=0)
    for table in (
        session_view(session).renderables[1],  # type: ignore[attr-defined]
        fleet_view([session], []).renderables[0],  # type: ignore[attr-defined]
        estimate_view([estimate.model_copy(update={"model": name})]).renderables[1],  # type: ignore[attr-defined]
        comparison_view(comparison).renderables[2],  # type: ignore[attr-defined]
    ):
        text = rendered(table)
        words = text.split()

        assert max(map(len, text.splitlines())) <= 80
        assert all(column.header for column in table.columns)
        for part in filter(None, re.split(r"[-_./ ]", name)):
            assert part in text or any(_is_middle_cut(part, word) for word in words), part


def _is_middle_cut(part: str, word: str) -> bool:
    head, cut, tail = word.partition("\N{HORIZONTAL ELLIPSIS}")
    return bool(cut and head and tail) and head in part and part.endswith(tail.rstrip("-_./"))


@pytest.mark.parametrize(
    ("name", "width", "lines"),
    [
        ("resnet18.fp32", 20, ["resnet18.fp32"]),
        ("resnet18.fp32", 10, ["resnet18.", "fp32"]),
        ("mobilenetv3_small", 10, ["mobil\N{HORIZONTAL ELLIPSIS}tv3_", "small"]),
        ("a-b_c.d/e", 4, ["a-b_", "c.d/", "e"]),
        ("two words", 6, ["two", "words"]),
    ],
)
def test_a_name_breaks_after_a_separator_or_is_shortened(
    name: str, width: int, lines: list[str]
) -> None:
    shown = rendered(Name(name), width=width).splitlines()

    assert [line.rstrip() for line in shown] == lines


@pytest.mark.parametrize("text", ["", "a", "0", "1,,2", "-1", "1.5"])
def test_counts_that_are_not_whole_numbers_are_refused(text: str) -> None:
    with pytest.raises(DeviceError, match="--batch"):
        parse_counts(text, option="--batch")


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "0.012"), (4.567, "4.57"), (123.4, "123"), (12345.6, "12346")]
)
def test_milliseconds_keep_about_three_digits(value: float, text: str) -> None:
    assert milliseconds(value) == text


def test_measuring_on_onnxruntime_never_imports_torch(make_model: MakeModel) -> None:
    path = make_model()
    code = (
        "import sys; from pathlib import Path;"
        "from hgkd_edge.bench.run import BenchOptions, run_bench;"
        f"run_bench(BenchOptions(models=(Path({str(path)!r}),), duration_s=0.05));"
        "assert 'torch' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code], check=True)
