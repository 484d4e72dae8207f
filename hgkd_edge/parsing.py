"""Text files that anyone may have written, decoded in one place."""

from __future__ import annotations

import codecs
from pathlib import Path

__all__ = ["decode_text", "read_text"]

# Byte order marks, the longest first: UTF-32's little-endian mark begins with UTF-16's.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """The text of a file, as `decode_text`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.
    """
    return decode_text(path.read_bytes())


def decode_text(content: bytes) -> str:
    """Text in UTF-8, or in what its byte order mark says (spreadsheets and PowerShell: UTF-16).

    Raises:
        ValueError: It is neither; names the line.
    """
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise ValueError(f"line {line} is not text in UTF-8") from error
    if "\0" in text:
        raise ValueError("is not text in UTF-8: it holds zero bytes")
    return text
