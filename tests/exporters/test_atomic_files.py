"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from exporters import ExportError
from exporters.atomic_files import atomic_write, hidden_folder, new_artifact, temporary_folder

WRITERS = [atomic_write, new_artifact]
Writer = Callable[[Path], AbstractContextManager[Path]]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", ["net.onnx", "net.plan", "recipe.yaml"])
def test_half_a_file_is_never_found_by_its_kind(writer: Writer, name: str, tmp_path: Path) -> None:
    with writer(tmp_path / name) as temporary:
        temporary.write_text("half")

        assert not list(tmp_path.glob(f"*{Path(name).suffix}"))
        assert list(tmp_path.glob(".*.tmp")) == [temporary], "what a resumed run removes"


@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_written_is_as_readable_as_any_file(writer: Writer, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()

    with writer(tmp_path / "written") as temporary:
        temporary.unlink()
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600))  # as some libraries do

    assert (tmp_path / "written").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("writer", WRITERS)
def test_an_error_for_the_user_passes_as_it_is(writer: Writer, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no such node"), writer(tmp_path / "net.onnx"):
        raise ExportError("no such node (os error 2)")

    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_error_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    for place in (tmp_path, tmp_path / "file" / "net.onnx"):
        with pytest.raises(ExportError, match="cannot write"), new_artifact(place):
            pass


def test_a_folder_below_one_that_became_read_only_stays_without_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with temporary_folder(".unproven-", tmp_path) as folder:
        (folder / "half").touch()
        monkeypatch.setattr("os.rmdir", denied)

    assert folder.is_dir()
    monkeypatch.undo()
    with hidden_folder(tmp_path) as other:  # as the next command does
        assert list(tmp_path.iterdir()) == [other]
    assert list(tmp_path.iterdir()) == []


def test_a_short_write_of_numpys_is_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as raised, atomic_write(tmp_path / "a.npy"):
        raise OSError("110592 requested and 28640 written")  # without a number, as NumPy does

    assert raised.value.filename == str(tmp_path / "a.npy")
