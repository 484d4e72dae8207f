"""Devices that are broken or hostile: bounded in every way, and a fault of theirs only."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hgkd_edge.bench.edge import stream
from hgkd_edge.bench.edge.facts import board_from_facts, checked_facts
from hgkd_edge.bench.edge.link import Link
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.run import run_bench
from hgkd_edge.errors import UserError

MakeModel = Callable[..., Path]

# A stand-in for `ssh`: the host `good` is this machine; any other host is an attack.
SSH = r"""#!{python}
import base64, json, os, re, sys, time, zlib
if sys.argv[-2] == "good":
    os.execv("/bin/sh", ["/bin/sh", "-c", sys.argv[-1].replace("exec python3", "exec {python}")])
stdin, out = sys.stdin.buffer, sys.stdout.buffer
source = stdin.read(int(stdin.readline())).decode()
mark = re.search("@hgkd-edge [0-9a-f]+ ", source)[0]
def raw(text):
    for start in range(0, len(text), 3900):
        last = start + 3900 >= len(text)
        out.write((mark + (".", "+")[not last] + text[start:start + 3900] + "\n").encode())
    out.flush()
def send(event, **fields):
    raw(json.dumps(dict(fields, event=event)))
def hello(**facts):
    send("hello", facts=dict(facts, onnxruntime="1.0", python="3.10", machine="aarch64"))
def job():
    json.loads(stdin.readline())
    send("need", names=[])
def result(**fields):
    hello(); job(); send("done")
    good = dict(case="case-0", rounds=[[1.0] * 9], first_ms=1.0, load_ms=1.0, memory_mb=1.0,
                warmup=dict(runs=1, seconds=1.0, stable=True), telemetry=[],
                board=dict(source=None, idle=[], overcurrent={{}}))
    send("result", **dict(good, **fields)); send("done")
def bomb(size):
    packer = zlib.compressobj(9)
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
    "an endless message": "while True: out.write((mark + '+' + 'x' * 3900 + '\\n').encode())",
    "endless greetings": "while True: send('waiting', reason='x')",
    "endless messages": "hello(); job()\n    while True: send('round', done=1, of=1)",
    "endless errors": "while True: sys.stderr.write('x' * 65536)",
    "deep JSON": "raw('{\"event\": \"hello\", \"facts\": ' + '[' * 100000 + ']' * 100000 + '}')",
    "rather deep JSON": "raw('{\"event\": \"hello\", \"facts\": ' + '[' * 900 + ']' * 900 + '}')",
    "no JSON": "raw('{')",
    "no message": "raw('[1, 2]')",
    "a huge number": "raw('{\"event\": \"hello\", \"facts\": ' + '9' * 5000 + '}')",
    "no facts": "send('hello', facts=7)\n    time.sleep(0.1)",
    "a compressed bomb": "hello(); job(); send('outputs', case='case-0', texts=[bomb(100)])",
    "outputs that are no text": "hello(); job(); send('outputs', case='case-0', texts=[7])",
    "outputs of no case": "hello(); job(); send('outputs', case='case-9', texts=[])",
    "files that nobody has": "hello(); stdin.readline(); send('need', names=['/etc/passwd'])",
    "files that are no list": "hello(); stdin.readline(); send('need', names=7)",
    "progress that is none": "hello(); job(); send('round', done='x', of=None)",
    "no results": "hello(); job(); send('done'); send('done')",
    "results twice": "hello(); job(); send('done'); [send('result', case='case-0') for _ in '12']\n"
    "    send('done')",
    "rounds that are no times": "result(rounds='fast')",
    "no rounds": "result(rounds=[])",
    "times that are not finite": "result(rounds=[[float('nan')] * 9])",
    "times below zero": "result(rounds=[[-1.0] * 9])",
    "a load time that is text": "result(load_ms=[1])",
    "telemetry that is none": "result(telemetry=[7], board={'source': 'tegrastats', 'idle': [], "
    "'overcurrent': {}})",
    "a failure of megabytes": "hello(); job(); send('failed', reason='x' * 10**7)",
    "a failure that is no text": "hello(); job(); send('failed', reason=[{}])",
    "a wait of megabytes": "hello(); job(); send('waiting', reason='x' * 10**7); send('failed', "
    "reason='y')",
    "endless facts": "hello(**{'f%d' % i: 'x' * 100 for i in range(10**4)}, model='x' * 10**7, "
    "compatible='nvidia,tegra234', nvpmodel='(' * 10**6, packages='libnvinfer' * 10**5); job(); "
    "send('done')",
    "a title and a screen of its own": "hello(); job(); send('failed', reason="
    "'\\x1b]8;;http://a.example\\x1b\\\\\\u202e\\x9b2J' + 'verified' * 99)",
    "a failure without a reason": "hello(); job(); send('failed')",
}  # fmt: skip


@pytest.fixture
def attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`ssh` to any host but `good` reaches a device that does this."""

    def prepare(lines: str, patience_s: float = 1.0) -> None:
        client = tmp_path / "bin" / "ssh"
        client.parent.mkdir()
        client.write_text(SSH.format(python=sys.executable, attack=lines))
        client.chmod(0o755)
        monkeypatch.setenv("PATH", str(client.parent), prepend=os.pathsep)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr("hgkd_edge.bench.edge.link._HELLO_S", patience_s)
        for name in ("_END_S", "_GRACE_S"):
            monkeypatch.setattr(f"hgkd_edge.bench.edge.link.{name}", 0.2)
        monkeypatch.setattr(stream, "MOST_EVENTS", 2000)
        monkeypatch.setattr(stream, "MOST_EVENT_TEXT", 1 << 20)
        monkeypatch.setattr("hgkd_edge.bench.edge.verification.MOST_OUTPUTS_TEXT", 1 << 20)

    return prepare


@pytest.mark.usefixtures("verified")
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


@pytest.mark.parametrize("lines", ["raw('{')", "result(rounds='fast')", "send('hello', facts=7)"])
def test_the_fault_of_one_device_is_its_line_in_the_table(
    make_model: MakeModel, attack: Callable[..., None], tmp_path: Path, lines: str
) -> None:
    attack(lines, patience_s=60.0)  # the good device imports its runtime, on a busy machine
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("hosts: [{host: bad}, {host: good}]\n")

    result = run_bench(BenchOptions(models=(make_model(),), hosts=fleet, duration_s=0.1, rounds=1))

    assert [session.target for session in result.sessions] == ["good"]
    assert [refusal.name for refusal in result.refusals] == ["bad"]


@pytest.mark.parametrize(
    "lines",
    [
        "while True: send('working', seconds=1, line='...'); time.sleep(0.05)",
        "while True: send('outputs', case='case-0', texts=[]); time.sleep(0.05)",
        "time.sleep(60)",
    ],
    ids=["busy", "chatty", "silent"],
)
def test_a_device_that_never_comes_to_an_end_has_a_bounded_time(
    attack: Callable[[str], None], tmp_path: Path, lines: str
) -> None:
    attack(f"hello(); job()\n    {lines}")
    command = [sys.executable, str(tmp_path / "bin" / "ssh"), "bad", ""]
    link = Link(command, where="bad", host=None, case_s=0.5)
    job = {"cases": [{}, {}], "tool": "trtexec", "silence_s": 60}
    heard: list[str] = []
    start = time.monotonic()

    try:
        link.hello()
        start = time.monotonic()
        with pytest.raises(UserError, match=r"no end of the work within 0\.00014 h per case"):
            link.work(job, {}, lambda event: heard.append(event["event"]), lambda event: None)
        took = time.monotonic() - start
    finally:
        link.close(forget=True)

    assert 1.0 <= took < 5
    assert len(heard) > 1 or "sleep(60)" in lines


def test_a_device_that_never_reads_what_it_asked_for_is_not_waited_for(
    attack: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack("hello(); stdin.readline(); send('need', names=['a'])\n    time.sleep(60)")
    monkeypatch.setattr("hgkd_edge.bench.edge.link._SILENCE_S", 0.3)
    link = Link([sys.executable, str(tmp_path / "bin" / "ssh"), "bad", ""], where="bad", host=None)
    job = {"cases": [{}], "tool": "trtexec", "silence_s": 60}

    try:
        link.hello()
        start = time.monotonic()
        with pytest.raises(UserError, match="it does not read what it is sent"):
            link.work(job, {"a": bytes(1 << 24)}, lambda event: None, lambda event: None)
        took = time.monotonic() - start
    finally:
        link.close()

    assert took < 5


@pytest.mark.parametrize("wrong", [None, 7, [], {}, "x", [[[]]], float("nan"), 10**400, True])
def test_a_fact_of_the_wrong_kind_is_a_gap(wrong: object) -> None:
    names = (
        "nv_tegra_release", "compatible", "model", "packages", "nvpmodel", "nvpmodel_conf", "cores",
        "jetson_clocks", "devfreq", "temperatures", "cpuinfo", "trtexec", "trtexec_help", "python",
    )  # fmt: skip

    facts = checked_facts(dict.fromkeys(names, wrong))
    jetson = checked_facts(dict.fromkeys(names, wrong) | {"compatible": "nvidia,tegra234"})

    assert not board_from_facts(facts).is_jetson
    for one in (facts, jetson):
        board = board_from_facts(one)
        assert board.environment(one)
        assert board.warnings() is not None
