"""Broken or hostile devices: every input is bounded, and the error stays with that device."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hgkd_edge.bench.edge.facts import clock_warnings, machine_of
from hgkd_edge.bench.edge.link import Link
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.run import run_bench
from hgkd_edge.errors import UserError, WrongOutputs

from .conftest import write_python

MakeModel = Callable[..., Path]

# A stand-in for `ssh`: the host `good` is this machine; any other host is an attack.
SSH = r"""#!{python}
import base64, gzip, json, os, re, sys, time, zlib
if sys.argv[-2] == "good":
    os.execv("/bin/sh", ["/bin/sh", "-c", sys.argv[-1]])
stdin, out = sys.stdin.buffer, sys.stdout.buffer
script = base64.b64decode(stdin.readline()).decode()
mark = re.search("@hgkd-edge [0-9a-f]+ ", script)[0]
def line(text):
    out.write((mark + text + "\n").encode())
    out.flush()
def raw(name, packed):
    for start in range(0, len(packed), 3000):
        line(name + " " + packed[start:start + 3000])
    line(name + " .")
def send(name, text=""):
    raw(name, base64.b64encode(gzip.compress(text.encode())).decode())
def facts(**more):
    more = dict(dict(onnxruntime="1.0", python="3.10", machine="aarch64", free=FREE), **more)
    send("facts", "".join("\n" + mark + name + "\n" + text for name, text in more.items()))
def request():
    text = b""
    while not text:
        text = stdin.readline().strip()
    return text
FREE = "Filesystem 1024-blocks Used Available\n/ 1 1 999999999 1% /"
def begin(free=FREE):
    facts(free=free); request(); send("ready")
def job():
    begin(); stdin.read(int(request()))
def ran(result, figures="0 0 1", log="1.0 text\n"):
    send("done", figures + "\n" + log + result)
def results(content, power=""):
    job(); ran("[[]]"); request(); ran(json.dumps(content))
    send("power", "1.0 started\n" + power)
def result(power="", **fields):
    good = dict(rounds=[[1.0] * 9], first_ms=1.0, load_ms=1.0, memory_mb=1.0, spans=[[0, 9]],
                warmup=dict(runs=1, seconds=1.0, stable=True))
    results([dict(good, **fields)], power)
def bomb(size):
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(bytes(1 << 20)) for _ in range(size)] + [packer.flush()]
    return base64.b64encode(b"".join(parts)).decode()
try:
    {attack}
    time.sleep(20)
except BrokenPipeError:
    pass
"""

ATTACKS = {
    "an endless line": "while True: out.write(b'x' * 65536)",
    "an endless line of ours": "out.write(mark.encode())\n    while True: out.write(b'x' * 65536)",
    "an endless message": "while True: line('log ' + 'x' * 3000)",
    "endless waiting": "facts()\n    while True: send('waiting')",
    "endless messages": "job()\n    while True: send('ready')",
    "endless errors": "while True: sys.stderr.write('x' * 65536)",
    "no facts": "send('facts')",
    "facts that are not packed": "raw('facts', '{')",
    "facts that are cut off": "raw('facts', base64.b64encode(gzip.compress(b'x')[:9]).decode())",
    "other messages than facts": "send('hello')",
    "no room": "begin('Filesystem\\n/ 1 1 0 100% /')",
    "room that is no number": "begin('x y z')",
    "no word of room": "begin('')",
    "a compressed bomb": "job(); raw('log', bomb(100))",
    "deep JSON": "job(); ran('[' * 100000 + ']' * 100000)",
    "rather deep JSON": "job(); ran('[' * 900 + ']' * 900)",
    "no JSON": "job(); ran('{')",
    "no list": "job(); ran('7')",
    "a huge number": "job(); ran('9' * 5000)",
    "outputs of no case": "job(); ran('[]')",
    "outputs of more cases": "job(); ran('[[], []]')",
    "messages out of turn": "job()\n    while True: send('result', '[]')",
    "a message that is no text": "job(); raw('done', base64.b64encode(bytes([255] * 9)).decode())",
    "a message of megabytes": "job(); send('done', 'x' * 10**7)",
    "fewer lines than stated": "job(); ran('', '0 0 9')",
    "no figures of a step": "job(); ran('', '0')",
    "no results": "results([])",
    "results twice": "results([{}, {}])",
    "results that are none": "results(7)",
    "rounds that are no times": "result(rounds='fast')",
    "no rounds": "result(rounds=[])",
    "times that are not finite": "result(rounds=[[float('nan')] * 9])",
    "times below zero": "result(rounds=[[-1.0] * 9])",
    "a load time that is text": "result(load_ms=[1])",
    "telemetry that is none": "result(power='x y')",
    "spans that are none": "result(spans=7)",
    "a failure of megabytes": "job(); ran('', '1 0 1', '1 [E] ' + 'x' * 10**7 + '\\n')",
    "a long failure": "job(); ran('', '1 0 1', '1 [E] ' + 'x' * 10**5 + '\\n')",
    "a failure without seconds": "job(); ran('', '1 0 1', 'text\\n')",
    "a failure without a code": "job(); ran('', '')",
    "a code that is no number": "job(); ran('', 'x 0 1')",
    "an endless list of facts": "facts(**{'f%d' % i: 'x' * 10 for i in range(10**4)}, "
    "model='x' * 10**5, compatible='nvidia,tegra234', nvpmodel='(' * 10**5, "
    "devfreq='gpu\\t' * 10**4); request(); send('done')",
    "a title and a second screen": "job(); ran('', '1 0 1', "
    "'1 error \\x1b]8;;http://a.example\\x1b\\\\\\u202e\\x9b2J' + 'verified' * 99 + '\\n')",
    "power that never started": "job(); ran('[[]]'); request(); ran('[]'); send('power', '')",
}  # fmt: skip
WRONG_OUTPUTS = {
    "outputs that are no list": "job(); ran('[[7]]')",
    "outputs without values": "job(); ran('[[[{}]]]')",
    "no outputs": "job(); ran('[[]]')",
    "outputs of another shape": 'job(); ran(\'[[[{"name": "features", "dimensions": "7", '
    '"values": [1]}]]]\')',
}


@pytest.fixture
def attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`ssh` to any host but `good` reaches a device that does this."""

    def prepare(lines: str, patience_s: float = 1.0) -> None:
        client = tmp_path / "bin" / "ssh"
        client.parent.mkdir()
        client.write_text(SSH.replace("{python}", sys.executable).replace("{attack}", lines, 1))
        client.chmod(0o755)
        write_python(client.parent)
        monkeypatch.setenv("PATH", str(client.parent), prepend=os.pathsep)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr("hgkd_edge.bench.edge.link._FACTS_S", patience_s)
        for name in ("_END_S", "_GRACE_S"):
            monkeypatch.setattr(f"hgkd_edge.bench.edge.link.{name}", 0.2)
        for name in ("MOST_PACKED", "MOST_UNPACKED"):
            monkeypatch.setattr(f"hgkd_edge.bench.edge.messages.{name}", 1 << 20)

    return prepare


@pytest.mark.parametrize("lines", ATTACKS.values(), ids=ATTACKS.keys())
def test_an_attack_ends_in_one_line_soon_and_without_memory(
    make_model: MakeModel, attack: Callable[..., None], lines: str
) -> None:
    attack(lines)
    options = BenchOptions(models=(make_model(),), host="bad", duration_s=0.1, rounds=1)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()

    with pytest.raises(UserError) as refusal:
        run_bench(options)

    assert "\n" not in refusal.value.message
    assert len(refusal.value.message) < 600
    assert time.monotonic() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


@pytest.mark.usefixtures("verified")
@pytest.mark.parametrize("lines", WRONG_OUTPUTS.values(), ids=WRONG_OUTPUTS.keys())
def test_outputs_that_cannot_be_read_are_wrong_outputs(
    make_model: MakeModel, attack: Callable[..., None], lines: str
) -> None:
    attack(lines)

    with pytest.raises(WrongOutputs, match="its outputs differ from those of 'net.onnx'"):
        run_bench(BenchOptions(models=(make_model(),), host="bad", duration_s=0.1, rounds=1))


@pytest.mark.parametrize("lines", ["raw('facts', '{')", "result(rounds='fast')", "send('facts')"])
def test_the_failure_of_one_device_is_its_line_in_the_table(
    make_model: MakeModel, attack: Callable[..., None], tmp_path: Path, lines: str
) -> None:
    attack(lines, patience_s=60.0)  # the good device imports its runtime, on a busy machine
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("hosts: [{host: bad}, {host: good}]\n")

    result = run_bench(BenchOptions(models=(make_model(),), hosts=fleet, duration_s=0.1, rounds=1))

    assert [session.target for session in result.sessions] == ["good"]
    assert [refusal.name for refusal in result.refusals] == ["bad"]


@pytest.mark.parametrize(
    "lines", ["while True: out.write(b'...'); time.sleep(0.05)", "time.sleep(60)"],
    ids=["busy", "silent"],
)  # fmt: skip
def test_a_device_that_never_comes_to_an_end_has_a_bounded_time(
    attack: Callable[[str], None], tmp_path: Path, lines: str
) -> None:
    attack(f"job()\n    {lines}")
    command = [sys.executable, str(tmp_path / "bin" / "ssh"), "bad", ""]
    link = Link(command, where="bad", host=None, case_s=0.5)
    start = time.monotonic()

    try:
        link.facts()
        start = time.monotonic()
        link.open("0", {"a": b"x"}, resume=False, cases=2)
        with pytest.raises(UserError, match=r"no end of the work within 0\.00014 h per case"):
            link.receive("done")
        took = time.monotonic() - start
    finally:
        link.close(forget=True)

    assert 1.0 <= took < 5


def test_a_device_that_never_reads_what_it_asked_for_is_not_waited_for(
    attack: Callable[[str], None], tmp_path: Path
) -> None:
    attack("begin(); time.sleep(60)")
    command = [sys.executable, str(tmp_path / "bin" / "ssh"), "bad", ""]
    link = Link(command, where="bad", host=None, case_s=0.3)

    try:
        link.facts()
        start = time.monotonic()
        with pytest.raises(UserError, match="no end of the work within"):
            link.open("0", {"a": bytes(1 << 24)}, resume=False, cases=1)
        took = time.monotonic() - start
    finally:
        link.close()

    assert took < 5


def test_a_plan_may_take_longer_than_the_facts(attack: Callable[..., None], tmp_path: Path) -> None:
    attack("job(); ran('', '1 0 1', '1 [E] no memory\\n')", patience_s=60.0)
    command = [sys.executable, str(tmp_path / "bin" / "ssh"), "bad", ""]
    link = Link(command, where="bad", host=None)

    try:
        link.facts()
        link._watchdog.join(5)
        assert not link._watchdog.is_alive()
        link.open("0", {"a": b"x"}, resume=False, cases=1)
        with pytest.raises(UserError, match="trtexec ended with code 1"):
            link.finished("building", "trtexec")
    finally:
        link.close()


@pytest.mark.parametrize(
    "wrong", ["", "x", "\n", "\t\t\t\n", "a\tgpu\t0\tx\t-1", "9" * 5000, "(" * 5000, "\0\x85"]
)
def test_a_fact_that_cannot_be_read_is_a_gap(wrong: str) -> None:
    names = (
        "nv_tegra_release", "compatible", "model", "packages", "nvpmodel", "nvpmodel_conf", "cores",
        "usable_cores", "loadavg", "devfreq", "temperatures", "cpuinfo", "python",
    )  # fmt: skip

    facts = dict.fromkeys(names, wrong)
    jetson = facts | {"compatible": "nvidia,tegra234"}

    assert not machine_of(facts).is_jetson
    for one in (facts, jetson, {}):
        machine = machine_of(one)
        assert machine.temperatures_c == {}
        assert clock_warnings(machine) is not None
