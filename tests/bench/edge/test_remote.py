"""End to end over a real sshd: the measurements, and the cleanup of the board."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import load_bench
from hgkd_edge.bench.run import run_bench
from hgkd_edge.errors import DeviceError, RunError, UserError

from ..conftest import quantized
from ..test_local import rendered
from .conftest import STANDINS, Board, make_jetson_root, measure, wait_until, write_python

MakeModel = Callable[..., Path]
StartBoard = Callable[..., Board]


@pytest.mark.usefixtures("verified")
def test_a_jetson_is_measured_by_its_own_tools_and_left_clean(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    board = start_board()
    model = make_model(side=64)

    [session] = measure(board, model, precisions=("fp16",)).sessions

    facts = session.environment
    assert session.target == board.address
    assert (facts.device_id, facts.jetpack, facts.l4t) == ("orin-nano-8", "6.2", "36.4.3")
    assert facts.power_modes == ["15W", "25W", "MAXN_SUPER"]
    assert (facts.power_mode, facts.power_mode_id, facts.trtexec) == ("15W", 0, "10.3.0")
    [one] = session.measurements
    assert one.latency_ms.p50 == pytest.approx(0.401947, rel=1e-4)
    assert one.latency_ms.max == pytest.approx(0.417068, rel=1e-4)
    assert one.build_ms == pytest.approx(10720.4)
    assert one.first_inference_ms is None
    build, run = one.commands
    assert "--fp16" in build
    assert "--optShapes=images:1x3x64x64" in build
    assert {"--useCudaGraph", "--useSpinWait", "--exportTimes=times-0.json"} <= set(run)
    assert load_bench(model.parent / "bench.json").sessions == [session]
    wait_until(lambda: not board.leftovers())


@pytest.mark.usefixtures("verified")
def test_a_jetson_measures_itself_without_ssh(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("bin", "state", "root"):
        (tmp_path / part).mkdir()
    make_jetson_root(tmp_path / "root")
    for tool in STANDINS.iterdir():
        (tmp_path / "bin" / tool.name).symlink_to(tool)
    write_python(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("STANDIN_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HGKD_EDGE_SYSROOT", str(tmp_path / "root"))

    [session] = run_bench(
        BenchOptions(models=(make_model(),), device="jetson", duration_s=1, rounds=1)
    ).sessions

    assert (session.target, session.environment.device_id) == ("jetson", "orin-nano-8")
    assert session.measurements[0].runner == "trtexec"
    assert session.measurements[0].verification is not None
    assert session.measurements[0].verification.passed
    assert list((tmp_path / "cache/hgkd-edge/jobs").iterdir()) == []


def test_power_is_that_of_the_measured_part_only(
    make_model: MakeModel, start_board: StartBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hgkd_edge.bench.edge.link.IDLE_S", 0.4)
    board = start_board(STANDIN_MEASURE_S="0.4")

    [one] = measure(board, make_model()).sessions[0].measurements

    seen = one.telemetry
    assert seen is not None
    assert seen.total_rail == "VDD_IN"
    assert seen.total_mean_w == pytest.approx(12.479)
    assert seen.idle_w == pytest.approx(4.824)
    assert seen.energy_per_image_mj == pytest.approx(12.479 / one.throughput_ips * 1000)
    assert 2 <= seen.samples < 10
    assert any("power rests on" in warning for warning in one.warnings)


def test_capped_clocks_are_printed_with_the_table(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    from hgkd_edge.bench.tables import session_view

    [session] = measure(start_board(STANDIN_MEASURE_S="1.5"), make_model()).sessions
    text = " ".join(rendered(session_view(session)).split())

    assert "NVIDIA Jetson Orin Nano Developer Kit, JetPack 6.2, mode 15W, clocks" in text
    assert "power mode 15W caps the clocks (GPU 612 of 1020 MHz)" in text
    assert "power 12.5 W mean" in text
    assert "ran: " in text
    assert "copies included" in text


def test_a_box_without_trtexec_is_measured_by_the_runner_sent_along(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    board = start_board("box", tools=(), jetson=False)
    images = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
    models = make_model("a"), make_model("b", width=64)

    [session] = measure(
        board, *models, batches=(1, 2), threads=(1,), rounds=2, duration_s=0.3, images=images
    ).sessions

    assert [(one.model, one.batch) for one in session.measurements] == [
        ("a", 1), ("a", 2), ("b", 1), ("b", 2)
    ]  # fmt: skip
    one = session.measurements[0]
    assert one.backend == "CPUExecutionProvider"
    assert one.latency_ms.count >= 20
    assert one.inputs[0].source == "images"
    assert one.first_inference_ms is not None
    assert session.measurements[2].ratio.median > 2
    wait_until(lambda: not board.leftovers())
    # ONNX Runtime would have left an identity for its reports.
    assert [entry.name for entry in (board.folder / "cache").iterdir()] == ["hgkd-edge"]


def test_a_box_with_neither_tool_says_what_to_install(
    make_model: MakeModel, start_board: StartBoard, tmp_path: Path
) -> None:
    (tmp_path / "empty" / "numpy").mkdir(parents=True)
    (tmp_path / "empty" / "numpy" / "__init__.py").write_text("raise ImportError('none')")
    board = start_board("bare", tools=(), jetson=False, PYTHONPATH=str(tmp_path / "empty"))

    with pytest.raises(DeviceError, match="neither trtexec nor a Python") as refusal:
        measure(board, make_model())

    assert "libnvinfer-bin" in refusal.value.hint


def test_a_failed_build_shows_trtexecs_own_lines_and_leaves_nothing(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    board = start_board(STANDIN_FAIL="1")

    with pytest.raises(UserError, match="no implementation for node conv0") as failure:
        measure(board, make_model())

    assert failure.value.exit_code == 1
    assert "\033" not in failure.value.message  # a board's text must not control the terminal
    wait_until(lambda: not board.leftovers())


def test_a_build_that_fails_does_not_stop_the_others(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    board = start_board(STANDIN_FAIL="--fp16", STANDIN_MEASURE_S="0.05")

    [session] = measure(board, make_model(), precisions=("fp16", "fp32")).sessions

    assert [one.case for one in session.measurements] == ["net trtexec b1"]
    [refusal] = session.refusals
    assert refusal.name == "net trtexec fp16 b1"
    assert "no implementation for node conv0" in refusal.reason
    wait_until(lambda: not board.leftovers())


def test_int8_of_flavor_cpu_is_never_built_by_tensorrt(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    net = make_model()
    for_cpu, _ = quantized(net, "cpu"), quantized(net, "tensorrt")
    board = start_board(STANDIN_MEASURE_S="0.05")

    [session] = measure(board, net.parent).sessions

    assert [one.model for one in session.measurements] == ["net", "net.int8-tensorrt"]
    [refusal] = session.refusals
    assert (refusal.name, board.builds()) == ("net.int8-cpu", 2)
    assert "flavor 'cpu'" in refusal.reason
    with pytest.raises(DeviceError, match=r"net\.int8-cpu: .* flavor 'cpu'"):
        measure(board, for_cpu)


def test_a_builder_that_the_system_killed_is_distinguished_from_one_that_failed(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    with pytest.raises(UserError, match="trtexec was ended by signal 9") as failure:
        measure(start_board(STANDIN_FAIL="killed"), make_model())

    assert "close other programs" in failure.value.hint


def test_tensorrt_11_takes_no_precision_from_a_flag(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    board, model = start_board(STANDIN_VERSION="110000"), make_model()

    with pytest.raises(DeviceError, match=r"TensorRT 11\.0\.0 takes the precision from the ONNX"):
        measure(board, model, precisions=("fp16",))
    [session] = measure(board, model).sessions

    assert "--includeDataTransfers" in session.measurements[0].commands[1]
    assert "--useCudaGraph" not in session.measurements[0].commands[1]


def test_int8_without_a_quantized_model_is_refused(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    with pytest.raises(RunError, match="no model of precision int8"):
        measure(start_board(), make_model(), precisions=("int8",))


def test_cases_take_turns_on_the_device_too(make_model: MakeModel, start_board: StartBoard) -> None:
    board = start_board(STANDIN_MEASURE_S="0.05")

    [session] = measure(board, make_model(), batches=(1, 4), rounds=2, duration_s=2.0).sessions

    order = [json.loads(call)[0] for call in board.calls() if "--exportTimes" in call]
    turns = "".join(name[-6] for name in order)
    assert turns in ("0110", "1001")
    assert [len(one.rounds_p50_ms) for one in session.measurements] == [2, 2]
