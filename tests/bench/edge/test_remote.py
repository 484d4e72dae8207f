"""The whole way over a real sshd: measured, refused, broken off, stopped, hostile names."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hgkd_edge.bench.edge import link as link_module
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import load_bench
from hgkd_edge.bench.run import BenchResult, run_bench
from hgkd_edge.errors import DeviceError, HgkdError, RunError

from ..test_local import rendered
from .conftest import STANDINS, Board, make_jetson_root, processes, wait_until

MakeModel = Callable[..., Path]
StartBoard = Callable[..., Board]


def measure(board: Board, *models: Path, **changes: object) -> BenchResult:
    options = {"duration_s": 1.0, "rounds": 1, "ssh_config": board.config, "host": board.address}
    return run_bench(BenchOptions(models=models, **{**options, **changes}))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def short_warmup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds of warm-up and of idling per case are for real boards."""
    for module in ("job", "results"):
        monkeypatch.setattr(f"hgkd_edge.bench.edge.{module}.WARMUP_MS", 200)
    monkeypatch.setattr("hgkd_edge.bench.edge.job.IDLE_S", 0.4)


def test_a_jetson_is_measured_by_its_own_tools_and_left_clean(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    board = start_board()
    model = make_model(side=64)

    [session] = measure(board, model, precisions=("fp16",)).sessions

    facts = session.environment
    assert session.target == board.address
    assert (facts["device_id"], facts["jetpack"], facts["l4t"]) == ("orin-nano-8", "6.2", "36.4.3")
    assert (facts["power_mode"], facts["power_mode_id"], facts["trtexec"]) == ("15W", 0, "10.3.0")
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


def test_a_jetson_measures_itself_without_ssh(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hgkd_edge.bench.edge.agent import facts

    for part in ("bin", "state", "root"):
        (tmp_path / part).mkdir()
    make_jetson_root(tmp_path / "root")
    for tool in STANDINS.iterdir():
        (tmp_path / "bin" / tool.name).symlink_to(tool)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("STANDIN_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HGKD_EDGE_SYSROOT", str(tmp_path / "root"))
    monkeypatch.setattr(facts, "ROOT", str(tmp_path / "root"))

    [session] = run_bench(
        BenchOptions(models=(make_model(),), device="jetson", duration_s=1, rounds=1)
    ).sessions

    assert (session.target, session.environment["device_id"]) == ("jetson", "orin-nano-8")
    assert session.measurements[0].runner == "trtexec"
    assert list((tmp_path / "cache/hgkd-edge/jobs").iterdir()) == []


def test_power_is_that_of_the_measured_part_only(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    [one] = measure(start_board(), make_model()).sessions[0].measurements

    seen = one.telemetry
    assert seen is not None
    assert seen.total_rail == "VDD_IN"
    assert seen.total_mean_w == pytest.approx(12.479)
    assert seen.idle_w == pytest.approx(4.824)
    assert seen.energy_per_image_mj == pytest.approx(12.479 / one.throughput_ips * 1000)
    assert seen.samples >= 2


def test_capped_clocks_are_printed_with_the_table(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    from hgkd_edge.bench.tables import session_view

    [session] = measure(start_board(), make_model()).sessions
    text = " ".join(rendered(session_view(session)).split())

    assert "NVIDIA Jetson Orin Nano Developer Kit, JetPack 6.2, mode 15W, clocks" in text
    assert "power mode 15W caps the clocks (GPU 612 of 625 MHz)" in text
    assert "power 12.5 W mean" in text
    assert "ran: " in text
    assert "copies inside the time" in text


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


def test_a_box_with_neither_tool_says_what_to_install(
    make_model: MakeModel, start_board: StartBoard, tmp_path: Path
) -> None:
    (tmp_path / "empty" / "numpy").mkdir(parents=True)
    (tmp_path / "empty" / "numpy" / "__init__.py").write_text("raise ImportError('none')")
    board = start_board("bare", tools=(), jetson=False, PYTHONPATH=str(tmp_path / "empty"))

    with pytest.raises(DeviceError, match="neither trtexec nor a Python") as refusal:
        measure(board, make_model())

    assert "libnvinfer-bin" in refusal.value.hint


@pytest.mark.parametrize(
    ("spoil", "said", "mend"),
    [
        (lambda board, keys: _client(board, keys), "refused the login", "ssh-copy-id"),
        (lambda board, _: _forget(board), "not a known host", "fingerprint"),
        (
            lambda board, keys: _other_host_key(board, keys),
            "key of .* has changed",
            "ssh-keygen -R",
        ),
        (lambda board, _: _stop(board), "nothing listens there", "is sshd running"),
    ],
    ids=["wrong key", "unknown host", "changed host key", "host down"],
)
def test_a_host_that_cannot_be_used_is_refused_with_the_mend(
    make_model: MakeModel,
    start_board: StartBoard,
    keys: Path,
    spoil: Callable[[Board, Path], object],
    said: str,
    mend: str,
) -> None:
    board = start_board()
    spoil(board, keys)

    with pytest.raises(DeviceError, match=said) as refusal:
        measure(board, make_model())

    assert mend in refusal.value.hint
    assert board.calls() == []


def test_a_name_nobody_knows_is_refused(make_model: MakeModel, start_board: StartBoard) -> None:
    with pytest.raises(DeviceError, match=r"no machine called 'no-such-board\.invalid'"):
        measure(start_board(), make_model(), host="no-such-board.invalid")


def test_a_host_without_python_is_refused(make_model: MakeModel, start_board: StartBoard) -> None:
    with pytest.raises(DeviceError, match="has no python3"):
        measure(start_board(python=False), make_model())


def test_a_failed_build_shows_trtexecs_own_lines_and_leaves_nothing(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    board = start_board(STANDIN_FAIL="1")

    with pytest.raises(HgkdError, match="no implementation for node conv0") as failure:
        measure(board, make_model())

    assert failure.value.exit_code == 1
    wait_until(lambda: not board.leftovers())


def test_hostile_names_reach_no_shell(
    make_model: MakeModel, start_board: StartBoard, tmp_path: Path
) -> None:
    board = start_board(greeting="Welcome to this board!")
    trap = tmp_path / "trapped"
    name = (
        f'a b\'; touch {trap.name}; $(touch {trap.name}) `touch {trap.name}` "q" -rf *\n& {{onnx}}'
    )
    model = make_model(name, batch=1)
    _rename_input(model, f"in'; touch {trap} #")

    [session] = measure(board, model).sessions

    assert session.measurements[0].latency_ms.count == 400
    assert not list(tmp_path.rglob(trap.name))
    for call in board.calls():
        assert "touch" not in call
        assert trap.name not in call
    wait_until(lambda: not board.leftovers())


def test_an_input_name_that_trtexec_would_misread_is_refused(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    board, model = start_board(), make_model()
    _rename_input(model, "x:1x1,y")

    with pytest.raises(DeviceError, match="cannot be told of an input called 'x:1x1,y'"):
        measure(board, model)


@pytest.mark.parametrize(
    "text",
    ["-oProxyCommand=touch x", "a b", "user@", "@host", "h:0", "h:99999", "h;ls", "$(x)@h", ""],
)
def test_hosts_that_are_no_hosts_are_refused_before_ssh_is_started(
    make_model: MakeModel, text: str
) -> None:
    with pytest.raises(DeviceError, match="--host"):
        run_bench(BenchOptions(models=(make_model(),), host=text))


def test_a_broken_connection_leaves_the_build_and_resume_picks_it_up(
    make_model: MakeModel, start_board: StartBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, model = start_board(STANDIN_BUILD_S="1.5"), make_model()
    _kill_ssh_when(board, lambda: board.builds() == 1, monkeypatch)

    with pytest.raises(HgkdError, match="connection to .* broke") as failure:
        measure(board, model)
    assert "--resume" in failure.value.hint
    assert failure.value.exit_code == 1

    [session] = measure(board, model, resume=True).sessions

    assert session.measurements[0].details["engine_reused"] is True
    assert board.builds() == 1
    wait_until(lambda: not board.leftovers())


@pytest.mark.parametrize("finished", [False, True], ids=["still building", "build finished"])
def test_without_resume_a_broken_off_session_is_ended_and_its_work_discarded(
    make_model: MakeModel,
    start_board: StartBoard,
    monkeypatch: pytest.MonkeyPatch,
    finished: bool,
) -> None:
    board, model = start_board(STANDIN_BUILD_S="1.5"), make_model()
    _kill_ssh_when(board, lambda: board.builds() == 1, monkeypatch)
    with pytest.raises(HgkdError, match="broke"):
        measure(board, model)
    if finished:
        wait_until(lambda: not processes())
        assert list(board.jobs.glob("*/engine-0.plan"))

    [session] = measure(board, model).sessions

    assert session.measurements[0].details["engine_reused"] is False
    assert board.builds() == 2
    wait_until(lambda: not board.leftovers())


def test_ctrl_c_stops_the_work_on_the_device_too(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    board, model = start_board(STANDIN_BUILD_S="60"), make_model()
    code = (
        "from pathlib import Path; from hgkd_edge.bench import BenchOptions, run_bench;"
        f"run_bench(BenchOptions(models=(Path({str(model)!r}),), host={board.address!r},"
        f" ssh_config=Path({str(board.config)!r})))"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, start_new_session=True
    )
    wait_until(lambda: board.builds() == 1)

    os.killpg(client.pid, signal.SIGINT)

    assert client.wait(15) != 0
    wait_until(lambda: not board.leftovers(), 5)


def test_a_fleet_makes_one_table_and_names_the_one_that_is_down(
    make_model: MakeModel, start_board: StartBoard, tmp_path: Path
) -> None:
    from hgkd_edge.bench.tables import fleet_view

    one, two = start_board("one"), start_board("two")
    config = tmp_path / "both"
    known = (one.folder / "known_hosts").read_text() + (two.folder / "known_hosts").read_text()
    (tmp_path / "known").write_text(known)
    config.write_text(
        one.config.read_text().replace(str(one.folder / "known_hosts"), str(tmp_path / "known"))
    )
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(
        f"hosts:\n  - {{host: '{one.address}', name: kitchen}}\n"
        f"  - {{host: '{two.address}', name: cellar}}\n  - host: root@127.0.0.1:1\n"
    )

    result = measure(one, make_model(), host=None, hosts=fleet, ssh_config=config)

    assert [session.target for session in result.sessions] == ["kitchen", "cellar"]
    assert [refusal.name for refusal in result.refusals] == ["root@127.0.0.1:1"]
    text = rendered(fleet_view(result.sessions, result.refusals))
    assert max(map(len, text.splitlines())) <= 80
    assert "kitchen" in text
    assert "not measured: root@127.0.0.1:1" in text


@pytest.mark.parametrize(
    "text", ["", "hosts: []", "hosts: [{hosst: a}]", "hosts: [{host: a}, {host: a}]", "{", "[]"]
)
def test_a_fleet_file_that_is_none_is_refused(
    make_model: MakeModel, tmp_path: Path, text: str
) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(text)

    with pytest.raises(DeviceError, match=r"fleet\.yaml"):
        run_bench(BenchOptions(models=(make_model(),), hosts=fleet))


def test_tensorrt_11_takes_no_precision_from_a_flag(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    board, model = start_board(STANDIN_VERSION="110000"), make_model()

    with pytest.raises(DeviceError, match=r"TensorRT 11\.0\.0 takes the precision from the ONNX"):
        measure(board, model, precisions=("fp16",))
    [session] = measure(board, model).sessions

    assert "--includeDataTransfers" in session.measurements[0].commands[1]
    assert "--useCudaGraph" not in session.measurements[0].commands[1]


def test_int8_without_a_quantised_model_is_refused(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    with pytest.raises(RunError, match="no model of precision int8"):
        measure(start_board(), make_model(), precisions=("int8",))


def test_cases_take_turns_on_the_device_too(make_model: MakeModel, start_board: StartBoard) -> None:
    board = start_board(STANDIN_MEASURE_S="0.05")

    [session] = measure(board, make_model(), batches=(1, 4), rounds=2, duration_s=2.0).sessions

    order = [json.loads(call)[0] for call in board.calls() if "--loadEngine" in call]
    assert [name[-6] for name in order] == ["0", "1", "1", "0"]
    assert [len(one.rounds_p50_ms) for one in session.measurements] == [2, 2]


def _client(board: Board, keys: Path) -> None:
    text = board.config.read_text().splitlines()
    board.config.write_text("\n".join([f"IdentityFile {keys}/stranger", *text[1:]]) + "\n")


def _forget(board: Board) -> None:
    (board.folder / "known_hosts").write_text("")


def _other_host_key(board: Board, keys: Path) -> None:
    other = (keys / "stranger.pub").read_text()
    (board.folder / "known_hosts").write_text(f"[127.0.0.1]:{board.port} {other}")


def _stop(board: Board) -> None:
    board.process.terminate()
    board.process.wait(5)


def _rename_input(path: Path, name: str) -> None:
    import onnx

    model = onnx.load(path)
    model.graph.input[0].name = name
    model.graph.node[0].input[0] = name
    onnx.save(model, path)


def _kill_ssh_when(
    board: Board, ready: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 the first ssh client as soon as `ready`, as a lost network would."""
    original = subprocess.Popen
    seen: list[subprocess.Popen] = []

    def popen(command: list[str], **options: object) -> subprocess.Popen:
        process = original(command, **options)  # type: ignore[call-overload]
        if not seen:
            seen.append(process)
            threading.Thread(target=strike, daemon=True).start()
        return process

    def strike() -> None:
        wait_until(ready)
        time.sleep(0.3)
        os.kill(seen[0].pid, signal.SIGKILL)

    monkeypatch.setattr(link_module.subprocess, "Popen", popen)
