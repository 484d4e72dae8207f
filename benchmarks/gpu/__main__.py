"""Run everything within a time limit and write one JSON; a failing part does not stop the others.

    python -m benchmarks.gpu --out gpu.json [--seconds 300] [--dry] [--tests tests.xml]

`--dry` runs every part small and on the CPU, to show that the scripts work. Parts run in order of
importance. Each has its own time limit, and all share that of `--seconds`; parts that do not fit
are listed under `skipped`. Triton's kernels are compiled first.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if "--without-triton" in sys.argv:
    sys.modules["triton"] = None  # type: ignore[assignment]  # before anything imports it

import torch

from benchmarks.gpu.encoder import encoder_rows, gather_rows
from benchmarks.gpu.end_to_end import decode_rates, distill
from benchmarks.gpu.measure import DRY, FULL, Scale
from benchmarks.gpu.update import update_rows
from benchmarks.gpu.warm_up import compile_all

BOTH = ("dense", "tiles")
# Seconds after which a part is cut off; a dry run, on one core, takes less.
COMPILING, ENCODER, UPDATE, WITH_TEACHER, GATHER, DISTILL, DECODE = 75, 25, 30, 50, 15, 75, 30


class TimeUp(BaseException):
    """The time of a part is over; not an `Exception`, which other code may catch."""


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise `TimeUp` after this many seconds, in the main thread."""

    def stop(*_: Any) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Results:
    """The measurements so far, written to a file after every part."""

    def __init__(self, file: Path, deadline: float, *, dry: bool) -> None:
        self.file, self.deadline = file, deadline
        self.found: dict[str, Any] = {
            "source": "dry run" if dry else "measured", "machine": machine(),
            "encoder": [], "update": [], "gather": [], "skipped": [], "errors": [],
        }  # fmt: skip

    def part(
        self, section: str, what: str, measure: Callable[[], Any], seconds: float = math.inf
    ) -> None:
        """Measure one part: rows of a section, or the section as a whole.

        Args:
            section: Section of the file.
            what: Names the part within its section.
            measure: Measures it.
            seconds: Its time limit, unless the deadline comes first. Rows until then are kept.
        """
        left = min(seconds, self.deadline - time.time())
        if left <= 0:
            self._note("skipped", f"{section}: {what}: no time left")
            return self.write()
        try:
            with limit(left):
                self._add(section, measure())
        except TimeUp:
            self._note("skipped", f"{section}: {what}: cut off after {left:.0f} s")
        except Exception as error:  # keep the results of other parts
            self._note("errors", f"{section}: {what}: {type(error).__name__}: {error}"[:500])
        self.write()

    def write(self) -> None:
        self.file.write_text(json.dumps(self.found, indent=1) + "\n")

    def _note(self, where: str, line: str) -> None:
        self.found[where].append(line)
        print(f"{where}: {line}", file=sys.stderr, flush=True)

    def _add(self, section: str, measured: Any) -> None:
        if not isinstance(self.found.get(section), list):
            self.found[section] = measured
            return
        for row in measured:
            row = {"triton": has_triton(), **row}
            self.found[section].append(row)
            print(section, *(f"{k}={v}" for k, v in row.items()), flush=True)


def has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def machine() -> dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    return {
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }  # fmt: skip


def measure_all(results: Results, scale: Scale) -> None:
    """Measure everything, with Triton's kernels if Triton is installed."""

    def encoder(name: str) -> None:
        results.part("encoder", name, lambda: encoder_rows(name, scale, BOTH), ENCODER)

    def update(name: str, *, teacher: bool) -> None:
        rows = functools.partial(update_rows, name, scale, BOTH, teacher=teacher)
        results.part("update", name, rows, WITH_TEACHER if teacher else UPDATE)

    first, *others = scale.students
    encoder(scale.networks[0])
    update(first, teacher=True)
    update(first, teacher=False)
    for name in scale.networks[1:]:
        encoder(name)
    results.part("gather", "windows", lambda: gather_rows(scale), GATHER)
    for name in others:
        update(name, teacher=False)


def measure_without_triton(results: Results, scale: Scale) -> None:
    for name in scale.networks:
        rows = functools.partial(encoder_rows, name, scale, ("tiles",))
        results.part("encoder", name, rows, ENCODER)
    results.part("gather", "windows", lambda: gather_rows(scale), GATHER)
    first = scale.students[0]
    rows = functools.partial(update_rows, first, scale, ("tiles",), teacher=False)
    results.part("update", first, rows, UPDATE)


def without_triton(arguments: argparse.Namespace, deadline: float) -> dict[str, Any]:
    """The same in a process without Triton."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks.gpu", "--without-triton", "--out", str(file)]
        command += ["--seconds", str(max(0, round(deadline - time.time())))]
        subprocess.run([*command, *(["--dry"] if arguments.dry else [])], check=True)
        return json.loads(file.read_text())


def test_summary(file: Path) -> dict[str, Any]:
    """Counts from a JUnit report, and the names of failed tests."""
    suite = next(ET.parse(file).iter("testsuite"))
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    numbers = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    return {**numbers, "failed": failed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--seconds", type=float, default=300, help="the limit of all parts together"
    )
    parser.add_argument("--tests", type=Path, help="JUnit report of tests/test_gpu.py")
    parser.add_argument("--dry", action="store_true", help="small, on the CPU")
    parser.add_argument("--without-triton", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not (arguments.dry or torch.cuda.is_available()):
        parser.error("needs an NVIDIA GPU; --dry runs everything small on the CPU")
    torch.manual_seed(0)
    scale, deadline = (DRY if arguments.dry else FULL), time.time() + arguments.seconds
    results = Results(arguments.out, deadline, dry=arguments.dry)
    if arguments.without_triton:
        return measure_without_triton(results, scale)
    if arguments.tests is not None:
        results.part("tests", str(arguments.tests), lambda: test_summary(arguments.tests))
    results.part("compiling", "kernels", lambda: compile_all(scale, COMPILING))
    results.deadline = deadline - 0.4 * arguments.seconds  # the rest is for the following parts
    measure_all(results, scale)
    results.deadline = deadline
    with tempfile.TemporaryDirectory() as folder:
        results.part("distill", "end to end", lambda: distill(scale, Path(folder)), DISTILL)
    results.part("decode", "rates", decode_rates, DECODE)
    if has_triton():
        results.part("rows", "without Triton", lambda: without_triton(arguments, deadline))
        for section in ("encoder", "gather", "update", "skipped", "errors"):
            results.found[section] += results.found.get("rows", {}).get(section, [])
        results.found.pop("rows", None)
        results.write()


if __name__ == "__main__":
    main()
