from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hgkd_edge.errors import DataError
from hgkd_edge.video.predict import Options, predict_folder
from hgkd_edge.video.watch_folder import watch_folder


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check more often than twice a second."""
    monkeypatch.setattr("hgkd_edge.video.predict.PAUSE", 0.05)


@pytest.fixture
def images(photos: Path) -> list[Path]:
    """Four real image files."""
    return sorted((photos / "test").rglob("*.webp"))[:4]


@pytest.fixture
def later() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Runs a function in a thread."""
    threads: list[threading.Thread] = []

    def start(work: Callable[[], None]) -> None:
        threads.append(threading.Thread(target=work))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()


def wait_for_lines(out: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    file = out / "predictions.jsonl"
    while not file.exists() or file.read_text().count("\n") < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_images_are_answered_once_each_as_they_become_whole(
    networks: dict[str, Path],
    images: list[Path],
    tmp_path: Path,
    later: Callable[[Callable[[], None]], None],
) -> None:
    folder, out = tmp_path / "inbox", tmp_path / "inbox" / "predictions"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(images[0], folder / "first.webp")
    half = images[1].read_bytes()
    (folder / "half.webp").write_bytes(half[: len(half) // 2])
    (folder / "unfinished.webp.part").write_bytes(half)

    def fill() -> None:
        wait_for_lines(out, 1)
        shutil.copy(images[2], folder / "sub" / "second.webp")
        wait_for_lines(out, 2)
        with (folder / "half.webp").open("ab") as file:
            file.write(half[len(half) // 2 :])
        wait_for_lines(out, 3)
        shutil.copy(images[3], folder / "first.webp")  # overwritten: a new image

    later(fill)
    made = predict_folder(networks["classify"], folder, out, Options(limit=4))

    lines = [json.loads(line) for line in Path(made.answers).read_text().splitlines()]
    names = [Path(line["photo"]).name for line in lines]
    assert names == ["first.webp", "second.webp", "half.webp", "first.webp"]
    assert all("labels" in line and "at" in line for line in lines)
    assert len({line["picture"] for line in lines}) == 4
    assert (made.frames, made.errors) == (4, 0)


def test_a_restart_keeps_the_records(
    networks: dict[str, Path], images: list[Path], tmp_path: Path
) -> None:
    folder, out = tmp_path / "inbox", tmp_path / "out"
    folder.mkdir()

    for image in images[:2]:
        shutil.copy(image, folder / "photo.webp")
        made = predict_folder(networks["classify"], folder, out, Options(limit=1))

    assert len([json.loads(line) for line in Path(made.answers).read_text().splitlines()]) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_watch_and_names_what_never_became_whole(
    networks: dict[str, Path],
    images: list[Path],
    tmp_path: Path,
    later: Callable[[Callable[[], None]], None],
    number: signal.Signals,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, out = tmp_path / "inbox", tmp_path / "out"
    folder.mkdir()
    content = images[1].read_bytes()
    (folder / "half.webp").write_bytes(content[: len(content) // 2])
    os.utime(folder / "half.webp", (1, 1))  # the oldest comes first
    shutil.copy(images[0], folder / "whole.webp")

    def stop() -> None:
        wait_for_lines(out, 1)
        os.kill(os.getpid(), number)

    later(stop)
    made = predict_folder(networks["classify"], folder, out, Options())

    answered, unread = map(json.loads, Path(made.answers).read_text().splitlines())
    assert "labels" in answered
    assert unread["photo"].endswith("half.webp")
    assert "cannot be read as an image" in unread["error"]
    assert (made.stopped, made.frames, made.errors) == (True, 1, 1)
    assert "half.webp: cannot be read" in " ".join(capsys.readouterr().err.split())


def test_a_file_is_not_given_while_it_grows(tmp_path: Path) -> None:
    looks, growing = iter(range(4)), tmp_path / "a.jpg"

    def stopped() -> bool:
        if (look := next(looks, None)) is None:
            return True
        growing.write_bytes(b"x" * (look + 1))
        return False

    given = list(watch_folder(tmp_path, but=tmp_path / "out", stopped=stopped, pause=0))

    assert given == []  # no file was the same in two consecutive checks
    given = list(watch_folder(tmp_path, but=tmp_path / "out", stopped=counting(4), pause=0))
    assert given == [growing]


def counting(looks: int) -> Callable[[], bool]:
    """True from this many calls on."""
    left = iter(range(looks))
    return lambda: next(left, None) is None


def test_what_is_no_folder_is_refused(networks: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        predict_folder(networks["classify"], tmp_path / "gone", tmp_path / "out", Options())


@pytest.mark.parametrize("out", [".", ".."])
def test_answers_do_not_lie_where_they_would_hide_the_images(
    networks: dict[str, Path], tmp_path: Path, out: str
) -> None:
    (tmp_path / "inbox").mkdir()

    with pytest.raises(DataError, match="holds the watched folder"):
        predict_folder(
            networks["classify"], tmp_path / "inbox", tmp_path / "inbox" / out, Options()
        )
