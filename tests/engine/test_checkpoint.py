"""Damaged or swapped checkpoints, and kills at the worst moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hgkd_edge.engine.checkpoint import read_checkpoint, sums_of, write_checkpoint
from hgkd_edge.errors import RunError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A checkpoint of step 1, then of step 2."""
    path = tmp_path / "checkpoints" / "last.pt"
    for step in (1, 2):
        write(path, step)
    return path


def write(path: Path, step: int) -> None:
    write_checkpoint(path, {"step": step, "w": torch.full((4,), step)}, resume_command="")


def step_of(path: Path) -> int:
    state: dict[str, Any] = {}
    read_checkpoint(path, device=torch.device("cpu"), load=state.update)
    return state["step"]


def test_a_checkpoint_says_that_it_is_the_one_that_was_written(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert step_of(file) == 2
    assert f"verified against {sums_of(file)}: last.pt" in capsys.readouterr().err.replace("\n", "")


def test_a_swapped_or_zeroed_checkpoint_is_not_resumed_in_silence(
    file: Path, tmp_path: Path
) -> None:
    write(tmp_path / "other.pt", 9)
    whole = file.read_bytes()

    for content in ((tmp_path / "other.pt").read_bytes(), bytes(len(whole)), whole[:-1]):
        file.write_bytes(content)
        with pytest.raises(RunError, match="is not the checkpoint that was written") as refused:
            step_of(file)
        assert f"remove {sums_of(file)}" in refused.value.hint


def test_the_hint_for_a_checkpoint_replaced_on_purpose_works(file: Path) -> None:
    write(file.with_name("other.pt"), 9)
    file.with_name("other.pt").replace(file)

    sums_of(file).unlink()

    assert step_of(file) == 9


def test_a_tensor_that_the_file_does_not_store_is_not_copied_into_the_optimizer(
    tmp_path: Path,
) -> None:
    moment = torch.zeros(1, dtype=torch.float16).expand(10**10)
    torch.save({"step": 1, "optimizer": {"state": {0: {"exp_avg": moment}}}}, tmp_path / "last.pt")

    with pytest.raises(RunError, match=r"holds a tensor \[10000000000\] that it does not store"):
        step_of(tmp_path / "last.pt")


def test_a_kill_between_the_sums_and_the_checkpoint_loses_nothing(file: Path) -> None:
    before = file.read_bytes()
    write(file, 3)
    file.write_bytes(before)  # killed after the sums were written, before the rename

    assert step_of(file) == 2
    write(file, 4)
    assert step_of(file) == 4


@pytest.mark.parametrize("content", [b"\xff", b"x" * (2**20 + 1), b""])
def test_forged_sums_are_one_line(file: Path, content: bytes) -> None:
    sums_of(file).write_bytes(content)

    with pytest.raises(RunError) as refused:
        step_of(file)

    assert str(sums_of(file)) in refused.value.hint
