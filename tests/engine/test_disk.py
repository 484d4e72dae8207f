"""Disks that are full, read-only or damaged: one clear error, and existing files stay intact."""

from __future__ import annotations

import contextlib
import errno
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from hgkd_edge.cli import main
from hgkd_edge.engine.checkpoint import fix_for, sums_of
from hgkd_edge.errors import RunError, TrainingError
from hgkd_edge.files import cache_dir
from tests.engine.helpers import Classify, losses, place, run, tiny_source


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond 2000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails with EFBIG
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A finished training on a file system that takes no more writes.

    Uses a mount, since file permissions do not restrict root.
    """
    folder = tmp_path / "mounted"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    run(Classify(), tiny_source(), folder, epochs=1)
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_disk_that_fills_up_under_the_checkpoint_keeps_the_one_before(tmp_path: Path) -> None:
    run(Classify(), tiny_source(), tmp_path, epochs=1)
    file = place(tmp_path).checkpoint_file
    before = file.read_bytes()

    with full_disk(), pytest.raises(TrainingError, match="cannot be written.*free disk space"):
        run(Classify(), tiny_source(), tmp_path, epochs=2, resume=True)

    assert file.read_bytes() == before
    assert {p.name for p in file.parent.iterdir()} == {"last.pt", "last.pt.sha256"}


def test_a_disk_that_fills_up_under_the_log_is_one_clear_error_and_resumes(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(Classify(), tiny_source(), whole, epochs=8)

    with full_disk(), pytest.raises(TrainingError, match=r"log .*log.jsonl cannot.*free disk"):
        run(Classify(), tiny_source(), stopped, epochs=8)
    assert 0 < (stopped / "log.jsonl").stat().st_size <= 2000
    run(Classify(), tiny_source(), stopped, epochs=8, resume=True)

    assert losses(stopped) == losses(whole)


def test_a_read_only_folder_is_one_clear_error(read_only: Path) -> None:
    before = contents(read_only)

    with pytest.raises(TrainingError, match=r"Read-only file system \(hint: make the folder writ"):
        run(Classify(), tiny_source(), read_only, epochs=2, resume=True)

    assert contents(read_only) == before


def test_what_cannot_be_written_has_a_fix_where_its_place_is_set(tmp_path: Path) -> None:
    read_only = OSError(errno.EROFS, "Read-only file system")

    assert fix_for(read_only, tmp_path / "last.pt") == "make the folder writable"
    assert "set HGKD_EDGE_CACHE" in fix_for(read_only, cache_dir() / "teachers" / "mae.pt")
    assert fix_for(OSError(errno.ENOSPC, ""), cache_dir() / "mae.pt") == "free disk space"


@pytest.mark.parametrize("place_of_run", ["a file", "read-only"])
def test_the_command_line_says_it_in_one_line(
    tiny_recipe_file: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    place_of_run: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "file"
    if place_of_run == "a file":
        folder.touch()
    else:
        folder = request.getfixturevalue("read_only") / "new"
    monkeypatch.setattr(
        sys, "argv", ["hgkd-edge", "distill", str(tiny_recipe_file), "--run", str(folder)]
    )

    capsys.readouterr()

    with pytest.raises(SystemExit) as ended:
        main()

    error, hint = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code in (1, 2)
    assert error.startswith("error: ")
    assert str(folder) in error
    assert hint.startswith("hint: ")


@pytest.mark.parametrize("damage", ["cut off", "of another model"])
def test_a_checkpoint_that_cannot_be_used_is_named(tmp_path: Path, damage: str) -> None:
    run(Classify(), tiny_source(), tmp_path, epochs=1)
    file = place(tmp_path).checkpoint_file
    task = Classify()
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:1000])
        sums_of(file).unlink()  # as of an earlier version
    else:
        task.model = nn.Linear(48, 8)

    with pytest.raises(RunError, match=r"last.pt cannot be used: "):
        run(task, tiny_source(), tmp_path, epochs=2, resume=True)
