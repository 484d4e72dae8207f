"""Finding the agent's events in the output of a connection, whatever else is printed there.

Login shells print greetings, colors and titles, with and without a line end, before, after and
between the agent's lines. Each connection has a random mark, and it is looked for anywhere.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator
from typing import Any

from hgkd_edge.bench.edge.limits import (
    MOST_EVENT_DEPTH,
    MOST_EVENT_TEXT,
    MOST_EVENTS,
    MOST_LINE,
    MOST_TOTAL_TEXT,
)
from hgkd_edge.parsing import parse_json

__all__ = ["Event", "EventStream", "StreamFault", "mark_of", "unpack"]

Event = dict[str, Any]

_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class StreamFault(Exception):
    """What a device sent goes beyond a bound, or is not what an agent sends."""


def mark_of(token: str) -> bytes:
    """What begins each line of an agent that was given `token`."""
    return f"@hgkd-edge {token} ".encode("ascii")


class EventStream:
    """Takes bytes as they come, gives the events in them.

    Args:
        token: The word that the agent of this connection was given.
    """

    def __init__(self, token: str) -> None:
        self._mark = mark_of(token)
        self._rest = b""
        self._pieces: list[bytes] = []
        self._size = self._total = self._events = 0

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Events that end in this chunk.

        Raises:
            StreamFault: A bound is passed, or a marked line is not the agent's.
        """
        self._rest += chunk
        while True:
            _before, found, after = self._rest.partition(self._mark)
            if not found:
                # Nothing but the beginning of a mark is worth keeping.
                self._rest = self._rest[-len(self._mark) + 1 :]
                return
            self._rest = found + after
            line, ended, rest = after.partition(b"\n")
            if len(line) > MOST_LINE:
                raise StreamFault(f"a line longer than {MOST_LINE} bytes")
            if not ended:
                return
            self._rest = rest
            if (event := self._take(line)) is not None:
                yield event

    def _take(self, line: bytes) -> Event | None:
        """The event that ends with this line, if one does."""
        self._size += len(line)
        self._total += len(line)
        if self._size > MOST_EVENT_TEXT:
            raise StreamFault(f"a message longer than {MOST_EVENT_TEXT >> 20} MiB")
        if self._total > MOST_TOTAL_TEXT:
            raise StreamFault(f"more than {MOST_TOTAL_TEXT >> 20} MiB of messages")
        self._pieces.append(line[1:])
        if line[:1] == b"+":
            return None
        text = b"".join(self._pieces).decode("utf-8", "replace")
        self._pieces, self._size = [], 0
        self._events += 1
        if self._events > MOST_EVENTS:
            raise StreamFault(f"more than {MOST_EVENTS} messages")
        return _event(text)


def unpack(text: str, *, most: int) -> str:
    """What the agent's `pack` made of a text.

    Raises:
        StreamFault: It is not packed text, or larger than `most` bytes.
    """
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(base64.b64decode(text), most)
    except (ValueError, TypeError, zlib.error) as error:
        raise StreamFault(f"packed text that cannot be read ({error})") from error
    if unpacker.unconsumed_tail:
        raise StreamFault(f"more than {most >> 20} MiB of packed text")
    return content.decode("utf-8", "replace")


def _event(text: str) -> Event:
    try:
        event = _plain(parse_json(text), 0)
    except ValueError as error:
        raise StreamFault(f"a message that is not JSON ({error})"[:200]) from error
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        raise StreamFault("a message without a name")
    return event


def _plain(value: Any, depth: int) -> Any:
    """A value of an event, its text without control characters; refused where nested too deep."""
    if depth > MOST_EVENT_DEPTH:
        raise StreamFault(f"a message nested deeper than {MOST_EVENT_DEPTH} levels")
    if isinstance(value, str):
        return value if value.isprintable() else value.translate(_CONTROLS)
    if isinstance(value, list):
        return [_plain(one, depth + 1) for one in value]
    if isinstance(value, dict):
        return {_plain(key, depth): _plain(one, depth + 1) for key, one in value.items()}
    return value
