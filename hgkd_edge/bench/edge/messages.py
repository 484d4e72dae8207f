"""Find our messages in the output of a connection, whatever else is printed in it.

A device may be broken or hostile: everything it sends is bounded by these limits.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator

__all__ = ["MessageStream", "StreamFault", "stamped"]

MOST_LINE = 4096  # bytes; the script writes lines of about 3,100, so that each goes out at once
MOST_PACKED = 32 << 20  # bytes of one message as it is sent
MOST_UNPACKED = 128 << 20  # of one message unpacked: trtexec's times of 400,000 inferences
MOST_MESSAGES = 1_000_000  # of one connection: one line of progress every two seconds for days
MOST_TOTAL = 1 << 30  # bytes of all messages

_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class StreamFault(Exception):
    """A device's message exceeds a bound, or was not written by the script."""


class MessageStream:
    """Parse (name, text) messages from a stream of bytes.

    Login shells print greetings, colors and titles, with and without a line end, before, after and
    between our lines. Each connection has a random mark, which may occur anywhere.

    Args:
        mark: The bytes that start each of our lines.
    """

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        self._rest = b""
        self._pieces: list[bytes] = []
        self._size = self._total = self._messages = 0

    def feed(self, chunk: bytes) -> Iterator[tuple[str, str]]:
        """Messages that end in this chunk.

        Raises:
            StreamFault: A bound is exceeded, or a marked line is not the script's.
        """
        self._rest += chunk
        while True:
            _before, found, after = self._rest.partition(self._mark)
            if not found:  # keep only a possible start of a mark
                self._rest = self._rest[-len(self._mark) + 1 :]
                return
            self._rest = found + after
            line, ended, rest = after.partition(b"\n")
            if len(line) > MOST_LINE:
                raise StreamFault(f"a line longer than {MOST_LINE} bytes")
            if not ended:
                return
            self._rest = rest
            name, _space, piece = line.partition(b" ")
            if (content := self._take(name, piece)) is not None:
                yield name[:40].decode("ascii", "replace"), content

    def _take(self, name: bytes, piece: bytes) -> str | None:
        """The content of the message that ends with this piece, if any."""
        self._total += len(piece)
        if self._total > MOST_TOTAL:
            raise StreamFault(f"more than {MOST_TOTAL >> 20} MiB of messages")
        if name != b"progress" and piece != b".":
            self._size += len(piece)
            if self._size > MOST_PACKED:
                raise StreamFault(f"a message longer than {MOST_PACKED >> 20} MiB")
            self._pieces.append(piece)
            return None
        self._messages += 1
        if self._messages > MOST_MESSAGES:
            raise StreamFault(f"more than {MOST_MESSAGES} messages")
        try:
            if name == b"progress":  # one line, which may come between those of another message
                content = base64.b64decode(piece)
            else:
                content = _unpacked(base64.b64decode(b"".join(self._pieces)))
                self._pieces, self._size = [], 0
        except (ValueError, zlib.error) as error:
            raise StreamFault(f"a message that cannot be unpacked ({error})"[:200]) from error
        text = content.decode("utf-8", "replace")
        return text if text.isprintable() else text.translate(_CONTROLS)


def _unpacked(packed: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    content = unpacker.decompress(packed, MOST_UNPACKED)
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise StreamFault(f"a message of more than {MOST_UNPACKED >> 20} MiB, or a broken one")
    return content


def stamped(text: str) -> list[tuple[float, str]]:
    """Lines with their times in seconds, as the script's `stamp` writes them."""
    parts = (line.partition(" ") for line in text.splitlines())
    return [(float(second), line) for second, _space, line in parts]
