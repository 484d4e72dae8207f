"""Login shells that print anything, in any amount, before, after and between our lines."""

from __future__ import annotations

import base64
import gzip
import platform
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest

from hgkd_edge.bench.edge.link import open_link
from hgkd_edge.bench.edge.messages import MessageStream

from .conftest import Board, measure

MakeModel = Callable[..., Path]
StartBoard = Callable[..., Board]

SHELLS = {
    "text without a line end": ("printf 'Welcome to the board> '", ""),
    "a title": (r"printf '\033]0;me@board\007'", ""),
    "colors and a cleared screen": (r"printf '\033[2J\033[1;32mready\033[0m'", ""),
    "an old mark": ("printf '@hgkd-edge 0 facts .\\n@hgkd-edge '", ""),
    "bytes that are no text": (r"printf '\377\376\000\001'", ""),
    "megabytes": ("head -c 20000000 /dev/zero | tr '\\0' x", ""),
    "megabytes of errors": ("head -c 20000000 /dev/zero | tr '\\0' x >&2", ""),
    "afterwards": ("", "printf 'bye'; head -c 1000000 /dev/zero"),
    "all the time": ("(for i in $(seq 100); do printf 'tick '; sleep 0.01; done) &", ""),
}


@pytest.mark.parametrize(("login", "logout"), SHELLS.values(), ids=SHELLS.keys())
def test_what_a_login_shell_prints_is_passed_over(
    make_model: MakeModel, start_board: StartBoard, login: str, logout: str
) -> None:
    board = start_board(login=login, logout=logout)

    [session] = measure(board, make_model()).sessions

    assert session.measurements[0].latency_ms.count == 400


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_messages_are_found_wherever_in_the_stream_they_begin(size: int) -> None:
    mark = b"@hgkd-edge secret "
    packed = base64.b64encode(gzip.compress(b"long" * 999))
    half = len(packed) // 8 * 4
    stream = (
        b"hello@hgkd-edge other log .\n@hgkd"
        + mark + b"go " + base64.b64encode(gzip.compress(b"first")) + b"\n"
        + mark + b"go .\n\x1b]0;t\x07"
        + mark + b"log " + packed[:half] + b"\ntick "
        + mark + b"log " + packed[half:] + b"\ntick\n"
        + mark + b"log .\nbye"
    )  # fmt: skip
    reader = MessageStream(mark)

    messages = [
        message
        for start in range(0, len(stream), size)
        for message in reader.feed(stream[start : start + size])
    ]

    assert messages == [("go", "first"), ("log", "long" * 999)]


def test_a_warning_of_a_package_is_no_part_of_its_version(
    start_board: StartBoard, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nprint('\\033[0;93m2026-01-01 [W:onnxruntime:Default, device_discovery.cc:164] "
        "GPU device discovery failed\\033[m', file=sys.stderr)\n"
    )
    board = start_board("box", tools=(), jetson=False, PYTHONPATH=str(tmp_path))

    with open_link(board.host, tell=lambda *_: None, config=board.config) as link:
        facts = link.facts()

    assert facts["onnxruntime"] == onnxruntime.__version__
    assert facts["python"] == platform.python_version()


@pytest.mark.usefixtures("verified")
def test_a_network_with_weights_in_another_file_is_measured_whole(
    make_model: MakeModel, start_board: StartBoard
) -> None:
    board = start_board("box", tools=(), jetson=False)
    path = make_model()
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location="w.data", size_threshold=0
    )

    [session] = measure(board, path, duration_s=0.1).sessions

    assert session.measurements[0].verification is not None
    assert session.measurements[0].verification.passed
    assert session.models[0].size_mb * 2**20 > (path.parent / "w.data").stat().st_size
