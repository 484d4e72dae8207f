"""A sample of many images: evenly spaced, because images are sorted by class or name."""

from __future__ import annotations

__all__ = ["evenly"]


def evenly(available: int, count: int) -> list[int]:
    """At most `count` of the indices below `available`, evenly spaced: the first and the last too.

    Positions between two indices are rounded down. A single index is the first.
    """
    count = min(count, available)
    return [i * (available - 1) // max(1, count - 1) for i in range(count)]
