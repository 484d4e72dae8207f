"""Memory that cannot be allocated is one error that names the batch size to try."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hgkd_edge.cli.failures import run_app
from hgkd_edge.errors import TrainingError, is_out_of_memory
from tests.engine.helpers import Classify, Net, run, tiny_source

EVERYTHING = 1 << 50  # bytes: more than any machine has


class Huge(Net):
    """A network whose second pass needs more memory than there is."""

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if self.calls:
            torch.empty(EVERYTHING, dtype=torch.uint8, device=images.device)
        return super().forward(images, labels)


def test_a_gpu_out_of_memory_is_known_by_its_type_whatever_it_says() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("words of a later version"))
    assert not is_out_of_memory(RuntimeError("words of a later version"))


@pytest.mark.parametrize(
    ("batch_size", "hint"),
    [(8, "start a new run with --set train.batch_size=4"), (1, "use a smaller data.image_size")],
)
def test_training_names_the_batch_size_to_try(tmp_path: Path, batch_size: int, hint: str) -> None:
    task = Classify()
    task.model = Huge(None)

    with pytest.raises(TrainingError, match="out of memory with train.batch_size") as raised:
        run(task, tiny_source(), tmp_path, batch_size=batch_size)

    assert raised.value.hint.startswith(hint)


def test_another_error_stays_what_it_is(tmp_path: Path) -> None:
    task = Classify()
    task.model = nn.Identity()

    with pytest.raises(ValueError, match="empty parameter list"):
        run(task, tiny_source(), tmp_path)


def empty() -> None:
    torch.empty(EVERYTHING, dtype=torch.uint8)


def bytes_of_python() -> None:
    bytearray(EVERYTHING)


@pytest.mark.parametrize("ask", [empty, bytes_of_python])
def test_every_command_says_it_in_one_line_and_calls_it_no_bug(
    ask: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hgkd-edge"])

    with pytest.raises(SystemExit) as ended:
        run_app(ask)

    error, hint = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1
    assert error == "error: out of memory"
    assert hint.startswith("hint: ")
