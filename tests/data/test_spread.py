"""A sample of many images is spread over all of them."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from hgkd_edge.data.spread import evenly


@given(st.integers(0, 10**7), st.integers(0, 500))
def test_a_sample_runs_from_the_first_image_to_the_last_in_equal_steps(
    available: int, count: int
) -> None:
    found = evenly(available, count)

    assert len(found) == min(available, count)
    steps = {after - before for before, after in itertools.pairwise(found)}
    assert not steps or min(steps) >= 1
    assert not steps or max(steps) - min(steps) <= 1
    if found:
        assert found[0] == 0
    if len(found) > 1:
        assert found[-1] == available - 1
