"""Hosts that cannot be used, names meant to do harm, several hosts at once."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hgkd_edge.bench.edge.hosts import load_fleet
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import load_bench
from hgkd_edge.bench.run import run_bench
from hgkd_edge.errors import DeviceError, RecipeError, UserError

from ..test_local import rendered
from .conftest import STANDINS, Board, measure, wait_until

MakeModel = Callable[..., Path]
StartBoard = Callable[..., Board]


@pytest.mark.parametrize(
    ("spoil", "expected", "fix"),
    [
        (lambda board, keys: _client(board, keys), "refused the login", "ssh-copy-id"),
        (lambda board, _: _forget(board), "not a known host", "fingerprint"),
        (
            lambda board, keys: _other_host_key(board, keys),
            "key of .* has changed",
            "ssh-keygen -R",
        ),
        (lambda board, _: _stop(board), "nothing listens on that port", "start sshd"),
    ],
    ids=["wrong key", "unknown host", "changed host key", "host down"],
)
def test_a_host_that_cannot_be_used_is_refused_with_the_fix(
    make_model: MakeModel,
    start_board: StartBoard,
    keys: Path,
    spoil: Callable[[Board, Path], object],
    expected: str,
    fix: str,
) -> None:
    board = start_board()
    spoil(board, keys)

    with pytest.raises(DeviceError, match=expected) as refusal:
        measure(board, make_model())

    assert fix in refusal.value.hint
    assert board.calls() == []


def test_a_reason_that_ssh_gives_late_is_still_heard(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "ssh"
    slow.write_text(
        "#!/bin/sh\nexec 1>&-\n"
        "(sleep 0.3; echo 'x@y: Permission denied (publickey).' >&2) &\nexit 255\n"
    )
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    with pytest.raises(DeviceError, match="refused the login"):
        run_bench(BenchOptions(models=(make_model(),), host="x@y"))


def test_a_name_nobody_knows_is_refused(make_model: MakeModel, start_board: StartBoard) -> None:
    with pytest.raises(DeviceError, match=r"no machine called 'no-such-board\.invalid'"):
        measure(start_board(), make_model(), host="no-such-board.invalid")


def test_a_jetson_without_python_is_measured(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    board = start_board(python=False, tools=("nvpmodel",))
    trtexec = board.folder / "bin" / "trtexec"  # its stand-in is a Python program
    trtexec.write_text(f'#!/bin/sh\nexec {sys.executable} {STANDINS / "trtexec"} "$@"\n')
    trtexec.chmod(0o755)

    [session] = measure(board, make_model()).sessions

    assert session.measurements[0].latency_ms.count == 400
    assert session.environment.python is None


@pytest.mark.parametrize("missing", ["flock", "gzip"])
def test_a_host_that_lacks_a_tool_is_refused_with_its_name(
    make_model: MakeModel, start_board: StartBoard, tmp_path: Path, missing: str
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for tool in Path("/usr/bin").iterdir():
        if tool.name != missing:
            (few / tool.name).symlink_to(tool)

    with pytest.raises(DeviceError, match=f"lacks a tool: {missing} is not installed"):
        measure(start_board(PATH=str(few)), make_model())


@pytest.mark.usefixtures("verified")
def test_hostile_names_reach_no_shell(
    make_model: MakeModel, start_board: StartBoard, tmp_path: Path
) -> None:
    board = start_board(login="echo Welcome to this board!")
    trap = tmp_path / "trapped"
    name = (
        f'a b\'; touch {trap.name}; $(touch {trap.name}) `touch {trap.name}` "q" -rf *\n& {{onnx}}'
    )
    model = make_model(name, batch=1)

    [session] = measure(board, model).sessions

    assert session.measurements[0].latency_ms.count == 400
    assert session.measurements[0].verification is not None
    assert not list(tmp_path.rglob(trap.name))
    for call in board.calls():
        assert "touch" not in call
        assert trap.name not in call
    wait_until(lambda: not board.leftovers())


@pytest.mark.parametrize("batch", ["batch", 1])
@pytest.mark.parametrize("name", ["x:1x1,y", "in'; touch x #"])
def test_an_input_name_that_trtexec_would_misread_is_refused(
    make_model: MakeModel, start_board: StartBoard, name: str, batch: str | int
) -> None:
    board, model = start_board(), make_model(batch=batch)
    _rename_input(model, name)

    with pytest.raises(DeviceError, match=f"cannot take an input named '{re.escape(name)}'"):
        measure(board, model)
    assert board.calls() == []


@pytest.mark.parametrize(
    "text",
    [
        "-oProxyCommand=touch x",
        "a b",
        "user@",
        "@host",
        "h:0",
        "h:99999",
        "h:２２",
        "h:٢٢",
        "h;ls",
        "$(x)@h",
        "",
    ],
)
def test_hosts_that_are_no_hosts_are_refused_before_ssh_is_started(
    make_model: MakeModel, text: str
) -> None:
    with pytest.raises(DeviceError, match="--host"):
        run_bench(BenchOptions(models=(make_model(),), host=text))


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


def test_an_interrupted_fleet_keeps_what_was_measured(
    make_model: MakeModel, start_board: StartBoard, tmp_path: Path
) -> None:
    board, model = start_board(), make_model()
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(
        f"hosts:\n  - {{host: '{board.address}', name: first}}\n  - {{host: nobody@127.0.0.1:1}}\n"
    )

    def interrupt(what: str, _part: float) -> None:
        if what.startswith("nobody"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(board, model, host=None, hosts=fleet, progress=interrupt)

    assert [one.target for one in load_bench(model.parent / "bench.json").sessions] == ["first"]


def test_a_misspelled_key_of_a_fleet_file_names_the_nearest(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("hosts: [{host: a}, {host: b, nam: x}]")

    with pytest.raises(
        RecipeError, match=r"unknown key 'hosts\.1\.nam' \(did you mean 'hosts\.1\.name'\?\)"
    ):
        load_fleet(fleet)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "a: &a [x, x]\nb: &b [*a, *a]\nhosts: " + "[*b, " * 9 + "]" * 9,
        "",
        "hosts: []",
        "hosts: [{hosst: a}]",
        "hosts: [{host: a}, {host: a}]",
        "{",
        "[]",
    ],
)
def test_a_fleet_file_that_is_none_is_refused(
    make_model: MakeModel, tmp_path: Path, text: str
) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(text)

    with pytest.raises(UserError, match=r"fleet\.yaml") as refusal:
        run_bench(BenchOptions(models=(make_model(),), hosts=fleet))

    assert refusal.value.exit_code == 2
    assert "\n" not in refusal.value.message


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
