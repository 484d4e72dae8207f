"""A thread makes items ahead of use, in a bounded queue: a live source drops the oldest."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["AHEAD", "ReadAhead"]

AHEAD = 4  # maximum frames in the queue: more would only delay answers of a live source
LOOK = 0.2  # seconds between looks at whether to stop
T = TypeVar("T")


class ReadAhead(Generic[T]):
    """Iterates in a thread and hands the items out in order.

    Args:
        items: What the thread iterates over.
        drop: True: where the queue is full, the oldest item is dropped and counted. False: the
            thread waits.
        stopped: Called often; True ends the iteration.
        size: Maximum number of waiting items.

    Attributes:
        dropped: Items dropped so far.
    """

    def __init__(
        self, items: Iterator[T], *, drop: bool, stopped: Callable[[], bool], size: int = AHEAD
    ) -> None:
        self._items, self._drop, self._stopped, self._size = items, drop, stopped, size
        self.dropped = 0
        self._queue: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._error: BaseException | None = None
        # A thread that waits for a dead camera does not keep the process alive.
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __iter__(self) -> Iterator[T]:
        self._thread.start()
        try:
            while (item := self._next()) is not None:
                yield item
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            self._thread.join(timeout=1)

    def _next(self) -> T | None:
        with self._changed:
            while not self._stopped():
                if self._queue:
                    item = self._queue.popleft()
                    self._changed.notify_all()
                    return item
                if self._ended:
                    if self._error is not None:
                        raise self._error
                    return None
                self._changed.wait(LOOK)
        return None

    def _read(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    return
        except BaseException as error:  # raised again in the consumer
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, item: T) -> bool:
        """Queue an item; False when the consumer has stopped."""
        with self._changed:
            while len(self._queue) >= self._size and not self._closed:
                if self._drop:
                    self._queue.popleft()
                    self.dropped += 1
                else:
                    self._changed.wait(LOOK)
            self._queue.append(item)
            self._changed.notify_all()
            return not self._closed
