"""Broken connections, frozen networks, Ctrl-C at every stage; and reusing finished builds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from hgkd_edge.bench.edge import link as link_module
from hgkd_edge.bench.edge import ssh
from hgkd_edge.errors import UserError

from .conftest import Board, measure, wait_until

MakeModel = Callable[..., Path]
StartBoard = Callable[..., Board]


def in_background(board: Board, model: Path) -> tuple[threading.Thread, list[UserError]]:
    """A session that is running, and the error that it ends with."""
    failures: list[UserError] = []

    def attempt() -> None:
        try:
            measure(board, model)
        except UserError as error:
            failures.append(error)

    session = threading.Thread(target=attempt)
    session.start()
    return session, failures


@pytest.mark.parametrize("resume", [True, False])
def test_a_broken_connection_ends_all_work_and_resume_finds_the_finished_build(
    make_model: MakeModel, start_board: StartBoard, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    board, model = start_board(STANDIN_BUILD_S="1.0"), make_model()
    _kill_ssh_when(board, lambda: board.builds() == 2, monkeypatch)

    with pytest.raises(UserError, match="connection to .* broke") as failure:
        measure(board, model, batches=(1, 2))
    assert "--resume" in failure.value.hint
    assert failure.value.exit_code == 1
    wait_until(lambda: not board.processes(), 5)
    assert list(board.jobs.glob("*/engine-0.plan"))

    [session] = measure(board, model, batches=(1, 2), resume=resume).sessions

    reused = [one.details["engine_reused"] for one in session.measurements]
    assert reused == [resume, False]
    assert board.builds() == (3 if resume else 4)
    wait_until(lambda: not board.leftovers())


def test_a_second_session_waits_for_the_first_and_measures_by_itself(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    board, model = start_board(STANDIN_BUILD_S="4.0"), make_model()
    heard: list[str] = []
    first = threading.Thread(target=measure, args=(board, model))

    first.start()
    wait_until(lambda: board.builds() == 1)
    measure(board, model, progress=lambda what, _part: heard.append(what))
    first.join()

    assert any("an earlier session is still at work" in what for what in heard)
    assert board.builds() == 2
    wait_until(lambda: not board.leftovers())


def test_another_session_that_does_not_end_is_not_touched(
    make_model: MakeModel, start_board: StartBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, model = start_board(STANDIN_BUILD_S="60"), make_model()
    clients = _watch_clients(monkeypatch)

    def attempt() -> None:
        with pytest.raises(UserError):
            measure(board, model)

    first = threading.Thread(target=attempt)
    first.start()
    wait_until(lambda: board.builds() == 1)
    monkeypatch.setattr("hgkd_edge.bench.edge.link.PATIENCE_S", 0)

    with pytest.raises(UserError, match="another session is measuring on this device"):
        measure(board, model)

    assert len(board.processes()) > 1
    os.kill(clients[0].pid, signal.SIGKILL)
    first.join(20)


def test_ctrl_c_stops_the_work_on_the_device_too(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    board, model = start_board(STANDIN_BUILD_S="60"), make_model()
    code = (
        "from pathlib import Path; from hgkd_edge.bench.run import BenchOptions, run_bench;"
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


@pytest.mark.parametrize("stage", ["upload", "building", "measuring"])
def test_an_interruption_at_any_stage_leaves_nothing_on_the_device(
    make_model: MakeModel, start_board: StartBoard, stage: str
) -> None:
    board, model = start_board(STANDIN_BUILD_S="0.2"), make_model(width=256)

    def interrupt(what: str, _part: float) -> None:
        if stage in what:
            raise KeyboardInterrupt

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        measure(board, model, rounds=2, duration_s=2.0, progress=interrupt)

    assert time.monotonic() - begin < 8
    wait_until(lambda: not board.leftovers(), 5)


def test_a_box_measured_by_the_sent_runner_is_left_clean_too(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    board = start_board("box", tools=(), jetson=False)

    def interrupt(what: str, _part: float) -> None:
        if "measuring" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(board, make_model(), rounds=4, threads=(1,), progress=interrupt)

    wait_until(lambda: not board.leftovers(), 5)


def test_a_network_that_freezes_without_a_word_is_noticed_on_the_device(
    make_model: MakeModel, start_board: StartBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hgkd_edge.bench.edge.link.SILENCE_S", 1.0)
    board, model = start_board(STANDIN_BUILD_S="60"), make_model()
    clients = _watch_clients(monkeypatch)
    session, failures = in_background(board, model)
    wait_until(lambda: board.builds() == 1)
    os.kill(clients[0].pid, signal.SIGSTOP)  # the connection stays open and silent

    try:
        wait_until(lambda: not board.leftovers(), 3.5)
    finally:
        os.kill(clients[0].pid, signal.SIGKILL)
        session.join(20)
    assert "connection to" in failures[0].message


def test_a_network_that_freezes_is_noticed_at_this_end_too(
    make_model: MakeModel, start_board: StartBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("ServerAliveInterval", "1"), ("ServerAliveCountMax", "2")):
        monkeypatch.setitem(ssh._OPTIONS, name, value)
    board, model = start_board(STANDIN_BUILD_S="60"), make_model()
    session, failures = in_background(board, model)
    wait_until(lambda: board.builds() == 1)
    connections = _connections(board.process.pid)  # the kernel still answers
    for pid in connections:
        os.kill(pid, signal.SIGSTOP)

    try:
        session.join(30)
        assert "connection to" in failures[0].message
        assert "--resume" in failures[0].hint
    finally:
        for pid in connections:
            os.kill(pid, signal.SIGKILL)
        session.join(30)
    wait_until(lambda: not board.leftovers())


@pytest.mark.parametrize(
    "command", [b"sh\0-c\0read -r script", b"sh\0-c\0mark="], ids=["serving", "working"]
)
def test_work_whose_script_was_killed_ends_too(
    make_model: MakeModel,
    start_board: StartBoard,
    monkeypatch: pytest.MonkeyPatch,
    command: bytes,
) -> None:
    monkeypatch.setattr("hgkd_edge.bench.edge.link.SILENCE_S", 8.0)
    board, model = start_board(STANDIN_BUILD_S="60"), make_model()
    session, failures = in_background(board, model)
    wait_until(lambda: board.builds() == 1)
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            ours = str(board.folder).encode() in (entry / "environ").read_bytes()
            if ours and (entry / "cmdline").read_bytes().startswith(command):
                os.kill(int(entry.name), signal.SIGKILL)

    wait_until(lambda: not board.processes())
    session.join(20)
    assert "connection to" in failures[0].message


def test_a_line_that_breaks_before_anything_is_built_leaves_nothing(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    board, model = start_board(), make_model(width=256)

    def fail(what: str, _part: float) -> None:
        if "upload" in what:
            raise OSError("no route to host")

    with pytest.raises(UserError, match="broke"):
        measure(board, model, progress=fail)

    wait_until(lambda: not board.leftovers(), 5)


def _connections(sshd: int) -> list[int]:
    """The server's processes for each connection: OpenSSH 9.8 has one more below the first."""
    below = [child for child in _children(sshd) if _command(child).startswith("sshd")]
    return below + [one for child in below for one in _connections(child)]


def _command(process: int) -> str:
    return Path(f"/proc/{process}/comm").read_text()


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            about = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(about[1]) == parent:
                found.append(int(entry.name))
    return found


def _watch_clients(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen]:
    """The ssh clients in the order in which they are started."""
    original = subprocess.Popen
    seen: list[subprocess.Popen] = []

    def popen(command: list[str], **options: object) -> subprocess.Popen:
        seen.append(original(command, **options))  # type: ignore[call-overload]
        return seen[-1]

    monkeypatch.setattr(link_module.subprocess, "Popen", popen)
    return seen


def _kill_ssh_when(
    board: Board, ready: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 the first ssh client as soon as `ready`, as a lost network would."""
    clients = _watch_clients(monkeypatch)

    def strike() -> None:
        wait_until(lambda: bool(clients) and ready())
        time.sleep(0.3)
        os.kill(clients[0].pid, signal.SIGKILL)

    threading.Thread(target=strike, daemon=True).start()
