"""Files that get their name only when they are proven, and what becomes of those that are not."""

import signal
import subprocess
import sys

import pytest

from exporters.atomic_files import SET_ASIDE, set_aside, until_proven
from exporters.errors import VerificationFailed


def names_in(folder):
    return sorted(file.name for file in folder.iterdir())


def belonging(path):
    """A file and all that belongs to it, written for a test."""
    for file in (path, path.with_name(f"{path.name}.json"), path.with_suffix(".bin")):
        file.write_text("new")


@pytest.mark.parametrize("suffix", [".onnx", ".plan", ".xml"])
def test_nothing_lies_under_its_own_name_before_it_is_proven(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"

    with until_proven(path) as lent:
        belonging(lent)
        assert lent.name == path.name
        assert not [file for file in tmp_path.glob("*") if file.is_file()]

    assert names_in(tmp_path) == sorted({path.name, f"{path.name}.json", "net.bin"})


@pytest.mark.parametrize("suffix", [".onnx", ".plan", ".xml"])
@pytest.mark.parametrize("aside_by", ["require", "nobody"])
def test_a_file_that_fails_is_put_aside_and_a_later_success_removes_it(tmp_path, suffix, aside_by):
    path = tmp_path / f"net{suffix}"
    path.write_text("an older file, proven when it was made")

    with pytest.raises(VerificationFailed), until_proven(path) as lent:
        lent.write_text("bad")
        lent.with_name(f"{lent.name}.json").write_text("bad")
        if suffix == ".xml":
            lent.with_suffix(".bin").write_text("bad")
        if aside_by == "require":
            set_aside(lent, SET_ASIDE)
        raise VerificationFailed("other outputs")
    failed = names_in(tmp_path)
    with until_proven(path) as lent:
        lent.write_text("good")

    assert all(".failed-verification." in name for name in failed)
    assert len(failed) == (3 if suffix == ".xml" else 2)
    assert names_in(tmp_path) == [path.name]
    assert path.read_text() == "good"


def test_what_ends_otherwise_leaves_the_older_file(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_text("older")

    with pytest.raises(KeyboardInterrupt), until_proven(path) as lent:
        lent.write_text("half")
        raise KeyboardInterrupt

    assert names_in(tmp_path) == ["net.onnx"]
    assert path.read_text() == "older"


def test_what_a_killed_process_left_is_removed_and_what_another_one_writes_is_not(tmp_path):
    path = tmp_path / "net.onnx"
    killed = (
        "import os, signal, sys; from exporters.atomic_files import until_proven\n"
        "with until_proven(sys.argv[1]) as lent:\n"
        "    lent.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", killed, path])
    left = names_in(tmp_path)

    with until_proven(path) as one, until_proven(path) as other:
        one.write_text("first")
        other.write_text("second")
        siblings = names_in(tmp_path)

    assert ended.returncode == -signal.SIGKILL
    assert len(left) == 1
    assert left[0].startswith(".unproven-")
    assert siblings == sorted([one.parent.name, other.parent.name])
    assert names_in(tmp_path) == ["net.onnx"]
