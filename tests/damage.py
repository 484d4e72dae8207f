"""Damages files as disks, networks, tools and strangers do. The same seed gives the same damage."""

from __future__ import annotations

import contextlib
import random
import re
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")
Damage = Callable[[bytes, random.Random], bytes]
# Values that a reader may take for a number, a name or a path.
VALUES = (
    *("NaN", "Infinity", "-1", "0", "1e309", "-0.0", "9" * 400, "null", "[]", "{}", '""', "''"),
    *("true", "0x7f", "../../../../etc/passwd", "/dev/zero", ".", "a" * 5000, "\n", "\x1b[2J"),
    *("\u202e", "\u0000", "!!python/object/apply:os.system [id]", "&a [*a]", "<!ENTITY a 'b'>"),
)


def cut_off(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def flip_bits(content: bytes, chance: random.Random) -> bytes:
    flipped = bytearray(content)
    for _ in range(chance.choice((1, 3, 30))):
        flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def blank_out(content: bytes, chance: random.Random) -> bytes:
    """A sector of zeros, as after a crash."""
    start = chance.randrange(len(content))
    length = min(chance.choice((1, 16, 512)), len(content) - start)
    return content[:start] + bytes(length) + content[start + length :]


def repeat(content: bytes, chance: random.Random) -> bytes:
    start, end = sorted(chance.randrange(len(content)) for _ in range(2))
    return content[:end] + content[start:end] * chance.choice((1, 9)) + content[end:]


def replace_head(content: bytes, chance: random.Random) -> bytes:
    """Sizes and counts are in the first bytes of most formats."""
    head = bytearray(content)
    for _ in range(chance.choice((1, 4))):
        head[chance.randrange(min(64, len(head)))] = chance.choice((0, 1, 127, 128, 255))
    return bytes(head)


def replace_value(content: bytes, chance: random.Random) -> bytes:
    """One word or number of a text by something else."""
    words = list(re.finditer(rb"[\w.+-]+", content))
    if not words:
        return content
    word = chance.choice(words)
    value = chance.choice((*VALUES, *(each[0].decode("latin-1") for each in words)))
    return content[: word.start()] + value.encode() + content[word.end() :]


def drop_line(content: bytes, chance: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    del lines[chance.randrange(len(lines))]
    return b"".join(lines)


BINARY: tuple[Damage, ...] = (cut_off, flip_bits, blank_out, repeat, replace_head)
TEXT: tuple[Damage, ...] = (cut_off, flip_bits, replace_value, replace_value, repeat, drop_line)


def damaged(content: bytes, damages: tuple[Damage, ...], seed: int) -> bytes:
    """The content with one damage, for a seed in turn."""
    chance = random.Random(seed)
    return damages[seed % len(damages)](content, chance)


class TooSlow(AssertionError):
    """A block took longer than its limit."""


@contextlib.contextmanager
def bounded(seconds: float = 10, megabytes: int = 1000) -> Iterator[None]:
    """Fail if the block takes longer, or more memory than now and this much."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 10**6, before[1]))
    start, own_start = time.process_time(), time.thread_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    spent, own = time.process_time() - start, time.thread_time() - own_start
    if spent >= seconds:
        raise TooSlow(f"{spent:.1f} s of processor time, {own:.1f} s of them in this thread")


def within(seconds: float, action: Callable[[], Result]) -> Result:
    """What an action gives that takes no longer; the quicker of two calls counts.

    On a virtual machine, time that the host takes is counted for the process that was running.
    """
    try:
        with bounded(seconds):
            return action()
    except TooSlow:
        with bounded(seconds):
            return action()
