"""Settings of generated tests: few and always the same examples in CI, many and new ones on demand.

HGKD_EDGE_FUZZ=5000 python -m pytest tests/test_bad_settings.py tests/test_doors.py
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from hgkd_edge.errors import UserError
from tests.damage import VALUES, within

EXAMPLES = int(os.environ.get("HGKD_EDGE_FUZZ", "0"))


def fuzz(examples: int) -> Any:
    """Decorator: so many examples in CI; more, new ones, and how to repeat a failure on demand."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        print_blob=bool(EXAMPLES),
        database=None,
        deadline=None,  # `refused_or_read` bounds the processor time
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(VALUES),
)
# What a file of settings or a record may hold in the place of the right value.
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def changed(draw: st.DrawFn, whole: Any) -> Any:
    """A nested value with one part replaced by anything, removed, or put in twice."""
    if not isinstance(whole, dict | list) or not whole or draw(st.integers(0, 5)) == 0:
        return draw(ANYTHING)
    copy: Any = whole.copy()
    keys = list(whole) if isinstance(whole, dict) else range(len(whole))
    key = draw(st.sampled_from(keys))
    match draw(st.sampled_from(["inside", "inside", "inside", "remove", "add"])):
        case "remove":
            del copy[key]
        case "add" if isinstance(copy, dict):
            copy[draw(st.text(max_size=9))] = draw(ANYTHING)
        case "add":
            copy.append(draw(ANYTHING))
        case _:
            copy[key] = draw(changed(whole[key]))
    return copy


def error_of(read: Callable[[], Any]) -> UserError | None:
    try:
        read()
    except UserError as error:
        return error
    return None


def refused_or_read(read: Callable[[], Any], *, seconds: float = 1) -> UserError | None:
    """Read something foreign: it works, or there is one short line; in bounded time and memory."""
    refused = within(seconds, lambda: error_of(read))
    if refused is None:
        return None
    assert refused.message.strip(), "an error without a message"
    assert "\n" not in refused.message, refused.message[:300]
    assert len(refused.message) < 3000, refused.message[:300]
    return refused


@contextlib.contextmanager
def argv(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr("sys.argv", ["hgkd-edge", *arguments])
        yield
