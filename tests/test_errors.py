"""Errors of other libraries, as one readable line."""

from __future__ import annotations

import errno
import io
import os
import pickle
import re
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

import exporters
import hgkd_edge.cli
from exporters import ExportError, MissingPackageError
from hgkd_edge.data.decode import Canvas, keep
from hgkd_edge.errors import DataError, TrainingError, UserError, reason_of
from hgkd_edge.processes import heeding_others


class Unreadable:
    pass


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("too wide"), "too wide"),
        (ValueError(""), "ValueError"),
        (NotImplementedError(), "NotImplementedError"),
        (RuntimeError("\n\n  first\nsecond"), "first"),
        (KeyError("cls"), "KeyError: 'cls'"),
        (ValueError(f"no {Unreadable()} here"), "no here"),
        (OSError(f"cannot read {io.BytesIO()!r}"), "cannot read"),
        (TypeError(f"{reason_of} is no array"), "is no array"),
        (TypeError(repr(Unreadable())), "TypeError"),
        (RuntimeError("[ONNXRuntimeError] : 1 : FAIL : no such node"), "no such node"),
        (DataError("a.jpg: empty", hint="remove it"), "a.jpg: empty"),
        (ExportError("no file", hint="check the path"), "no file"),
    ],
)
def test_a_reason_is_one_line_without_addresses(error: Exception, expected: str) -> None:
    assert reason_of(error) == expected


def test_an_image_that_is_none_says_so_without_an_object(tmp_path: Path) -> None:
    with pytest.raises(UnidentifiedImageError) as raised:
        Image.open(io.BytesIO(b"no picture"))

    assert "BytesIO" in str(raised.value), "what Pillow says"
    assert reason_of(raised.value) == "cannot identify image file"


def test_an_error_reaches_other_processes_as_it_is() -> None:
    error = MissingPackageError("a step", package="lightly", extra="ibot", more="or a wheel")

    again = pickle.loads(pickle.dumps(error))

    assert type(again) is MissingPackageError
    assert str(again) == str(error)


def test_skipped_files_carry_such_reasons() -> None:
    import numpy as np

    from hgkd_edge.data.photos import Photos

    photos = Photos(["a.jpg"], np.array([0]), [b"no picture"].__getitem__, lambda i: 10)

    ((name, reason),) = keep(photos, Canvas(8, 8, exact=False), threads=1).skipped

    assert name == "a.jpg"
    assert " at 0x" not in reason


def every_error() -> list[type[UserError]]:
    found: list[type[UserError]] = [UserError]
    for each in found:
        found += each.__subclasses__()
    return found[1:]


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_of_both_packages_ends_a_command_with_its_line_and_hint(
    kind: type[UserError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = kind.__new__(kind)
    UserError.__init__(error, "what and where", hint="the fix")

    def fail(**options: object) -> None:
        raise error

    monkeypatch.setattr(hgkd_edge.cli, "app", fail)
    with pytest.raises(SystemExit) as ended:
        hgkd_edge.cli.main()

    expected = capsys.readouterr().err
    assert ended.value.code == error.exit_code
    assert expected.removeprefix("error: ") == "what and where\nhint: the fix\n"


@pytest.mark.parametrize(
    ("number", "readable", "hint"),
    [
        (errno.EROFS, True, "make the folder writable"),
        (errno.EACCES, True, "make the folder writable"),
        (errno.EACCES, False, "make it readable: ls -ld '{}'"),
    ],
)
def test_the_hint_for_a_file_fits_reading_and_writing_and_every_command(
    number: int,
    readable: bool,
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "my model.onnx"
    file.touch()

    def fail(**options: object) -> None:
        raise OSError(number, os.strerror(number), str(file))

    monkeypatch.setattr(os, "access", lambda path, mode: readable)  # root may read everything
    monkeypatch.setattr(hgkd_edge.cli, "app", fail)
    with pytest.raises(SystemExit):
        hgkd_edge.cli.main()

    assert capsys.readouterr().err.splitlines()[1] == f"hint: {hint.format(file)}"


def test_no_module_asks_an_error_for_the_name_of_its_class_or_its_attributes() -> None:
    for package in (Path(exporters.__file__).parent, Path(hgkd_edge.__file__).parent):
        for file in package.rglob("*.py"):
            asked = re.findall(r"type\(\w+\)\.__name__ [!=]=|hasattr\(\w*err\w*,", file.read_text())
            assert not asked, file


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        ("DistBackendError", True),
        ("DistNetworkError", True),
        ("DistStoreError", True),
        ("gloo", True),
        ("RuntimeError", False),
    ],
)
def test_a_lost_process_is_known_by_the_type_of_what_the_exchange_raises(
    error: str, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("torch.distributed")
    kind = getattr(distributed, error, RuntimeError)
    text = "gloo: connection closed by peer" if error == "gloo" else "size mismatch"
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(TrainingError if lost else RuntimeError) as raised, heeding_others():
        raise kind(text)

    assert isinstance(raised.value, TrainingError) == lost
