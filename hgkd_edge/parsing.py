"""Decode untrusted text, JSON and YAML within bounds.

A file of a few kilobytes can ask for gigabytes of memory (YAML aliases of aliases), exhaust the
stack (deep nesting) or block forever (a named pipe). All such files are read by this module.
"""

from __future__ import annotations

import codecs
import json
import os
import reprlib
import stat
from pathlib import Path
from typing import Any, NamedTuple

import yaml

__all__ = [
    "MAX_DEPTH",
    "MAX_LABEL_BYTES",
    "MAX_LOG_BYTES",
    "MAX_RECORD_BYTES",
    "MAX_SETTINGS_BYTES",
    "MAX_TEXT_BYTES",
    "StrictLoader",
    "brief",
    "cut",
    "decode_text",
    "parse_json",
    "parse_yaml",
    "read_file",
    "read_text",
    "require_file",
    "yaml_fault",
]

MAX_SETTINGS_BYTES = 2**20  # of a recipe
MAX_TEXT_BYTES = 2**32  # of annotations, tables and lists: those of large data sets have gigabytes
MAX_LABEL_BYTES = 2**20  # of the label of one image
MAX_RECORD_BYTES = 2**26  # of one JSON file of a run: a manifest lists skipped images by name
MAX_LOG_BYTES = 2**30  # of a log.jsonl: about seven million batches
MAX_DEPTH = 40  # of nested sections and lists in settings, of JSON, and of XML
MAX_NUMBER = 400  # characters of a number in settings: YAML also has hexadecimals and base 60
MAX_NODES = 50_000  # of settings, with aliases expanded
MAX_SHOWN = 80  # characters of a foreign value in a message

# Byte order marks, the longest first: UTF-32's little-endian mark starts with UTF-16's.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_file(path: Path, limit: int = MAX_TEXT_BYTES, *, kind: str = "text") -> bytes:
    """The bytes of a regular file of bounded size.

    A named pipe would block the reader; a device such as /dev/zero never ends.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not a regular file, or larger than `limit` bytes.
    """
    _require_regular(os.stat(path), kind)  # before opening: opening a device may have side effects
    with open(path, "rb", opener=_open_without_waiting) as stream:
        about = os.fstat(stream.fileno())
        _require_regular(about, kind)
        if about.st_size > limit:
            raise ValueError(f"has {about.st_size:,} bytes; {kind} files are read up to {limit:,}")
        return stream.read(about.st_size)


def require_file(path: Path, limit: int, *, kind: str) -> None:
    """Check that a file for another library is a regular file of bounded size.

    Raises:
        OSError: It cannot be accessed.
        ValueError: It is not a regular file, or larger than `limit` bytes.
    """
    about = os.stat(path)
    _require_regular(about, kind)
    if about.st_size > limit:
        raise ValueError(f"has {about.st_size:,} bytes; {kind} files are read up to {limit:,}")


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """The text of a file, as `read_file` and `decode_text`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not a regular file, larger than `limit` bytes, or not text.
    """
    return decode_text(read_file(path, limit))


def decode_text(content: bytes) -> str:
    """Text in UTF-8, or as its byte order mark states (spreadsheets, PowerShell: UTF-16).

    Raises:
        ValueError: It is neither; the message names the line.
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


def parse_json(text: str, limit: int = MAX_TEXT_BYTES) -> Any:
    """Parse untrusted JSON.

    Raises:
        ValueError: It is not JSON, has more than `limit` characters, is nested more than
            `MAX_DEPTH` levels deep, or holds a number of thousands of digits.
    """
    if len(text) > limit:
        raise ValueError(f"has {len(text):,} characters; {limit:,} are read")
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise _too_deep() from error
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # Python refuses numbers of more than 4,300 digits
        raise ValueError("holds a number of too many digits") from error
    _require_shallow(value)
    return value


def _require_shallow(value: Any) -> None:
    """Reject JSON that would exhaust the stack of a recursive reader, though not the parser's."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise _too_deep()


_SIGNS = ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")  # keys << and =, not values


class StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, but duplicate keys are errors (by default the last value wins)."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As in YAML's loader, to a limited depth: its time grows with the square of the depth."""
        self._depth += 1
        if self._depth > MAX_DEPTH + 1:
            raise _too_deep()
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As in YAML's loader, after a check that no key occurs twice."""
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            # Compare values too: 0 and 0.0, or yes and true, are the same key.
            value = key.value if key.tag in _SIGNS else self.construct_object(key)
            if not seen.isdisjoint({value, key.value}):
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{cut(key.value)}' is defined twice", key.start_mark
                )
            seen |= {value, key.value}
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, loader: type[StrictLoader] = StrictLoader) -> Any:
    """Parse untrusted YAML.

    Raises:
        yaml.YAMLError: It is not YAML, or a mapping defines a key twice.
        ValueError: It is nested too deeply, expands to too much, or holds an impossible value.
    """
    open_loader = loader(text)
    try:
        node = open_loader.get_single_node()
        if node is None:
            return None
        extent = _extent(node, {}, MAX_DEPTH)
        if extent.depth > MAX_DEPTH:
            raise _too_deep()
        if extent.nodes > MAX_NODES:
            raise ValueError(f"expands to {extent.nodes:,} values, {MAX_NODES:,} are read")
        return _constructed(open_loader, node)
    except RecursionError as error:
        raise _too_deep() from error
    finally:
        open_loader.dispose()


def _constructed(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    try:
        return loader.construct_document(node)
    # 30 February, a number of 5,000 digits; !!bool and !!timestamp before any other text.
    except (ValueError, OverflowError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"holds a value that cannot be read: {cut(str(error))}") from error


def yaml_fault(error: yaml.YAMLError) -> str:
    """Where and why a text is not YAML, in one line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f" at line {mark.line + 1}" if mark else ""
    return f"not valid YAML{where}" + (f": {cut(problem)}" if problem else "")


def brief(value: Any) -> str:
    """`repr` of a foreign value for a message, in at most `MAX_SHOWN` characters."""
    return cut(_short.repr(value))


def cut(text: str) -> str:
    """Foreign text for a message, in one line of at most `MAX_SHOWN` characters."""
    shown = " ".join(text[:MAX_SHOWN].splitlines())
    return shown if len(text) <= MAX_SHOWN else f"{shown[: MAX_SHOWN - 3]}..."


class _Short(reprlib.Repr):
    """`repr` limited to a few items and levels."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxlong = 3, MAX_SHOWN, MAX_SHOWN


_short = _Short()


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Extent(NamedTuple):
    """Size of a YAML node with aliases expanded: number of values, and levels."""

    nodes: int
    depth: int


def _extent(node: yaml.Node, known: dict[int, _Extent], allowed: int) -> _Extent:
    """Measure a YAML node with aliases expanded; every node is visited once.

    Raises:
        ValueError: It is nested more than `allowed` levels deep, as an alias of itself is, or holds
            a number of more than `MAX_NUMBER` characters.
    """
    if id(node) in known:
        return known[id(node)]
    if allowed == 0:
        raise _too_deep()
    if node.tag in _NUMBERS and len(node.value) > MAX_NUMBER:
        raise ValueError("holds a number of too many digits")
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    parts = [_extent(child, known, allowed - 1) for child in children]
    nodes, depth = sum(part.nodes for part in parts), max((part.depth for part in parts), default=0)
    known[id(node)] = _Extent(1 + nodes, 1 + depth)
    return known[id(node)]


def _too_deep() -> ValueError:
    return ValueError(f"is nested more than {MAX_DEPTH} levels deep")


def _open_without_waiting(file: str, flags: int) -> int:
    return os.open(file, flags | getattr(os, "O_NONBLOCK", 0))


def _require_regular(about: os.stat_result, kind: str) -> None:
    if not stat.S_ISREG(about.st_mode):
        kinds = {
            stat.S_IFDIR: "folder",
            stat.S_IFIFO: "named pipe",
            stat.S_IFSOCK: "socket",
            stat.S_IFCHR: "device",
            stat.S_IFBLK: "device",
        }
        found = kinds.get(stat.S_IFMT(about.st_mode), "special file")
        raise ValueError(f"is a {found}, no {kind}")
