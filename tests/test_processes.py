"""Messages between the processes of one training, without starting any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hgkd_edge import processes


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the main process of two sends."""
    messages: list[Any] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "_from_main", messages.append)
    return messages


def work(alive: Callable[[], None]) -> str:
    for _ in range(3):
        alive()
    return "result"


def test_long_work_sends_signs_of_life_and_then_its_result(
    sent: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "BETWEEN_SIGNS", 0.0)

    assert processes.on_main_for_long(work) == "result"

    assert sent == [*[(False, None, None)] * 3, (True, "result", None)]


def test_short_work_sends_its_result_only(sent: list[Any]) -> None:
    processes.on_main_for_long(work)

    assert sent == [(True, "result", None)]


def test_the_error_of_the_main_process_is_raised_there_after_it_was_sent(sent: list[Any]) -> None:
    error = ValueError("no room")

    def fail() -> None:
        raise error

    with pytest.raises(ValueError, match="no room"):
        processes.on_main(fail)

    assert sent == [(True, None, error)]


@pytest.mark.parametrize("error", [None, ValueError("no room")])
def test_the_others_wait_through_signs_of_life(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    messages = iter([(False, None, None)] * 5 + [(True, "result", error)])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(processes, "_from_main", lambda _: next(messages))

    if error is None:
        assert processes.on_main_for_long(work) == "result"
    else:
        with pytest.raises(ValueError, match="no room"):
            processes.on_main_for_long(work)
    assert next(messages, None) is None
