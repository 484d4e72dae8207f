"""Find our messages in the output of a connection, whatever else is printed in it.

A device may be broken or hostile: everything it sends is bounded by these limits.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator

__all__ = ["MessageStream", "StreamFault"]

MOST_LINE = 4096  # bytes; the script writes lines of about 3,100, so that each goes out at once
MOST_PACKED = 256 << 20  # bytes of all messages as they are sent
MOST_UNPACKED = 128 << 20  # of one message unpacked: trtexec's times of 400,000 inferences

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
        self._packed = 0

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
            _require(len(line) <= MOST_LINE, f"a line longer than {MOST_LINE} bytes")
            if not ended:
                return
            self._rest = rest
            name, _space, piece = line.partition(b" ")
            self._packed += len(line)
            _require(self._packed <= MOST_PACKED, f"more than {MOST_PACKED >> 20} MiB of messages")
            if piece == b".":
                yield name[:40].decode("ascii", "replace"), self._content()
            else:
                self._pieces.append(piece)

    def _content(self) -> str:
        """The content of the message that these pieces make."""
        unpacker = zlib.decompressobj(wbits=31)
        try:
            packed = base64.b64decode(b"".join(self._pieces))
            content = unpacker.decompress(packed, MOST_UNPACKED)
        except (ValueError, zlib.error) as error:
            raise StreamFault(f"a message that cannot be unpacked ({error})"[:200]) from error
        _require(unpacker.eof, f"a message of more than {MOST_UNPACKED >> 20} MiB, or a broken one")
        self._pieces = []
        text = content.decode("utf-8", "replace")
        return text if text.isprintable() else text.translate(_CONTROLS)


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise StreamFault(fault)
