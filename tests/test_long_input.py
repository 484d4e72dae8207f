"""What strangers and devices send may be long: the time to read it grows no faster than its length.

A pattern that scans the same text again from each place takes minutes for a message of a megabyte;
random damage hardly ever finds that. Here a few characters are repeated.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from yaml import YAMLError

from exporters.errors import UserError, reason_of
from hgkd_edge.bench.edge import facts
from hgkd_edge.bench.edge.facts import clock_warnings, machine_of
from hgkd_edge.bench.edge.job import Power
from hgkd_edge.bench.edge.messages import MessageStream, StreamFault
from hgkd_edge.bench.edge.ssh import Host, explain
from hgkd_edge.bench.edge.tegrastats import parse_line
from hgkd_edge.bench.edge.trtexec import Trtexec, parse_log, parse_outputs, parse_times
from hgkd_edge.data.names import clean, readable, split_named
from hgkd_edge.models.untrusted import check_name
from hgkd_edge.parsing import parse_json, parse_yaml
from tests.bench.edge.test_facts import facts_of_a_jetson
from tests.damage import within

LENGTH = 200_000  # characters; a fact of a device is cut at 262,144
ANY = ("\n", " ", "\t", "<", "/", "a", "1", "-", "[", "{", '"', ",", ":", "\\", "\x1b[")
MARK = "@hgkd-edge 0123456789abcdef "


def messages_of(text: str) -> None:
    stream, content = MessageStream(MARK.encode()), text.encode()
    for at in range(0, len(content), 65_536):
        list(stream.feed(content[at : at + 65_536]))


READERS: dict[str, tuple[Callable[[str], object], tuple[str, ...]]] = {
    "a log of trtexec": (
        lambda text: parse_log(text.splitlines()),
        ("] Latency: ", "] Latency: median = 1", "Engine built in 1", "] CUDA Graph: "),
    ),
    "the help of trtexec": (Trtexec.from_help, ("[TensorRT v1", "[TensorRT v1.1.1", ".1", "--")),
    "outputs": (parse_outputs, ("nan", " inf", "-inf,")),
    "times": (lambda text: parse_times(text, copies="in", warmup_ms=1), ("[{",)),
    "a line of tegrastats": (parse_line, ("RAM 1/1MB ", "A 1mW/", "A@1.", "GR3D_FREQ 1%@[1,")),
    "power": (Power.parse, ("oc1_event_cnt 1\n",)),
    "messages": (messages_of, (MARK, f"{MARK}facts ", f"{MARK}f a\n", f"{MARK}f .\n")),
    "the words of ssh": (lambda text: explain(Host("orin"), 255, text), ("refused ", "no rout")),
    "an error of a library": (
        lambda text: reason_of(ValueError(text)),
        ("/a.cc:1 ", "/a.cc:1 b) ", "<a at 0x", " <"),
    ),
    "the name of a network": (lambda text: check_name("teacher.name", text), ("a.",)),
    "the name of a class": (readable, ("_", "Aa", "é")),
    "the name of a file": (lambda text: (clean(text), split_named(text)), ("A", "aA1_", "2020-")),
    "YAML": (parse_yaml, ("- ", "? ", "&a ", "*a ", "!!", "a: ", "[a, ", "[[], ", "#")),
    "JSON": (parse_json, ('{"a": ', "1e", '\\"')),
}


# The names under which a device sends facts.
FACTS = re.findall(r"fact (\w+) && ", (Path(facts.__file__).parent / "device.sh").read_text())

assert FACTS


def machine_with(name: str) -> Callable[[str], object]:
    sent = facts_of_a_jetson()
    return lambda text: clock_warnings(machine_of({**sent, name: text}))


OF_A_FACT = ("< ", "<POWER_MODEL ID=1 NAME=", "R1(release),\n", "\n1 ", "a\tb\t1\n", "model name\n")
READERS |= {f"the fact {name}": (machine_with(name), OF_A_FACT) for name in FACTS}


@pytest.mark.parametrize("name", READERS)
def test_the_time_to_read_does_not_grow_with_the_square_of_the_length(name: str) -> None:
    read, its_own = READERS[name]

    def reads(text: str) -> None:
        with contextlib.suppress(UserError, StreamFault, ValueError, YAMLError):
            read(text)

    for repeated in (*ANY, *its_own):
        within(1, partial(reads, repeated * (LENGTH // len(repeated))))
