"""Power and clocks while something runs: tegrastats lines, or the INA3221 sensors themselves."""

import glob
import os
import shutil
import subprocess
import threading
import time
from typing import Any, Optional

from . import facts, life

INTERVAL_MS = 100


class Telemetry(object):
    """Collects (time, text) lines in the background from `start` to `stop`.

    Times are `time.monotonic()`: a board without a battery sets its clock when the network comes.
    A line of tegrastats is kept as it came; without tegrastats the rails are read from sysfs and
    written as `NAME <mW>mW`, the form that tegrastats uses.
    """

    def __init__(self) -> None:
        self.lines: list = []
        self.source: Optional[str] = None
        self._process: Any = None
        self._stop = threading.Event()
        self._thread: Any = None

    def start(self) -> None:
        """Begin sampling; does nothing on a machine with neither source."""
        tool = shutil.which("tegrastats")
        if tool:
            self.source = "tegrastats"
            self._process = life.start(
                [tool, "--interval", str(INTERVAL_MS)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            target = self._read_tool
        elif rails():
            self.source = "ina3221"
            target = self._read_sensors
        else:
            return
        self._thread = life.in_background(target)

    def stop(self) -> None:
        """End sampling and the tool."""
        self._stop.set()
        if self._process is not None:
            life.end(self._process)
        if self._thread is not None:
            self._thread.join(5)

    def between(self, begin: float, finish: float) -> list:
        """Lines taken within [begin, finish] seconds of `time.monotonic()`."""
        return [[stamp, line] for stamp, line in list(self.lines) if begin <= stamp <= finish]

    def _read_tool(self) -> None:
        output = self._process.stdout if self._process else None
        for raw in output or []:
            self.lines.append((time.monotonic(), raw.decode("utf-8", "replace").strip()))

    def _read_sensors(self) -> None:
        while not self._stop.wait(INTERVAL_MS / 1000.0):
            parts = ["%s %dmW" % (name, milliwatts) for name, milliwatts in rails()]
            self.lines.append((time.monotonic(), " ".join(parts)))


def rails() -> list:
    """[(label, mW)] of the INA3221 sensors: hwmon on JetPack 5+, iio on JetPack 4."""
    seen = []
    base = os.path.join(facts.ROOT, "sys/bus/i2c/devices")
    for label in sorted(glob.glob(os.path.join(base, "*/hwmon/hwmon*/in*_label"))):
        chip = facts.read(os.path.relpath(os.path.join(os.path.dirname(label), "name"), facts.ROOT))
        if chip != "ina3221":  # another sensor of the board, not a supply rail
            continue
        name = facts.read(os.path.relpath(label, facts.ROOT))
        stem = label[: -len("_label")]
        volts = _number(stem + "_input")
        amps = _number(
            os.path.join(os.path.dirname(stem), "curr" + stem.rsplit("in", 1)[1] + "_input")
        )
        if name and is_rail(name) and volts is not None and amps is not None:
            seen.append((name.replace(" ", "_"), volts * amps // 1000))  # mV x mA = uW
    old = os.path.join(facts.ROOT, "sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*")
    for label in sorted(glob.glob(old)):
        name = facts.read(os.path.relpath(label, facts.ROOT))
        folder, number = os.path.dirname(label), label.rsplit("_", 1)[1]
        power = _number(os.path.join(folder, "in_power%s_input" % number))
        if name and is_rail(name) and power is not None:
            seen.append((name.replace(" ", "_"), power))
    return seen


def is_rail(name: str) -> bool:
    """Whether a label is that of a supply rail: not the sum of others, and connected."""
    plain = name.lower().replace("_", "").replace(" ", "").rstrip("0123456789")
    return plain != "nc" and "sum" not in plain


def _number(path: str) -> Optional[int]:
    text = facts.read(os.path.relpath(path, facts.ROOT))
    return int(text) if text and text.lstrip("-").isdigit() else None
