"""Raw facts -> which Jetson this is, its software, and whether its clocks allow a meaningful
result. Tolerant by design: an unknown L4T or a missing tool leaves a gap, not an error."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hgkd_edge.bench.devices import Device, Mode, load_devices, load_jetpacks
from hgkd_edge.bench.environment import cpu_name

__all__ = [
    "Board",
    "board_from_facts",
    "is_jetson_here",
    "parse_jetson_clocks",
    "parse_nvpmodel",
    "parse_release",
]

# Names of the GPU in the device tree: Xavier, Orin; `gpu` on older ones; gpu-gpc-0 on Thor.
_GPU_NODES = ("gv11b", "ga10b", "gp10b", "gpu", "gpu-gpc-0")
_TEGRA = {
    "tegra210": "Nano or TX1",
    "tegra186": "TX2",
    "tegra194": "Xavier",
    "tegra234": "Orin",
    "tegra264": "Thor",
}
_MOST_TEXT = 1 << 18  # characters of one fact, such as the help of trtexec


@dataclass(frozen=True)
class Board:
    """A recognized board; `device` is its entry in the table, if any."""

    is_jetson: bool
    model: str | None = None
    device: Device | None = None
    l4t: str | None = None
    jetpack: str | None = None
    tensorrt_package: str | None = None
    power_mode: str | None = None
    power_mode_id: int | None = None
    power_modes: list[str] = field(default_factory=list)
    clocks_locked: bool | None = None
    gpu_mhz: dict[str, float] | None = None
    temperatures_c: dict[str, float] = field(default_factory=dict)

    def environment(self, facts: Mapping[str, str]) -> dict[str, Any]:
        """The machine's record in bench.json."""
        entry = asdict(self)
        entry["device_id"] = self.device.id if self.device else None
        entry["device"] = (
            self.model or cpu_name(facts.get("cpuinfo", "")) or facts.get("machine") or None
        )
        for key in ("machine", "system", "governor", "loadavg", "python"):
            entry[key] = facts.get(key) or None
        for key in ("cores", "usable_cores"):
            count = facts.get(key, "")[:9]
            entry[key] = int(count) if count.isdecimal() else None
        return entry

    def warnings(self) -> list[str]:
        """Reasons why a measurement taken now may mislead."""
        if not self.is_jetson:
            return []
        notes = []
        if self.power_mode is None:
            notes.append(
                "the power mode is unknown (nvpmodel -q printed nothing): clocks may be capped"
            )
        elif (cap := self._cap()) is not None:
            notes.append(
                f"power mode {self.power_mode} caps the clocks{cap}: faster modes exist; list them "
                "with nvpmodel -p, set one with sudo nvpmodel -m ID"
            )
        if self.clocks_locked is False:
            notes.append(
                "clocks are not locked: short runs see low clocks, tails grow; sudo jetson_clocks"
            )
        elif self.clocks_locked is None:
            notes.append("cannot tell whether the clocks are locked")
        hottest = max(self.temperatures_c.values(), default=0.0)
        if hottest >= 85:
            notes.append(f"{hottest:.0f} C already: thermal throttling is near")
        return notes

    def _cap(self) -> str | None:
        """By how much the power mode caps the GPU, where known; None for the fastest mode."""
        name = self.power_mode or ""
        if name.startswith("MAXN"):
            return None
        modes = self._modes()
        fastest = max((mode.gpu_mhz for mode in modes), default=0)
        plain = name.removeprefix("MODE_")
        mode = next((one for one in modes if one.name.removeprefix("MODE_") == plain), None)
        if mode is None:
            return ""
        if mode.gpu_mhz < fastest:
            return f" (GPU {mode.gpu_mhz} of {fastest} MHz)"
        no_maxn = self.power_modes and not any(one.startswith("MAXN") for one in self.power_modes)
        return None if no_maxn else ""

    def _modes(self) -> list[Mode]:
        """The table's modes of the configuration that this board is flashed with."""
        raised = any("SUPER" in name for name in [*self.power_modes, self.power_mode or ""])
        return [mode for mode in self.device.modes if mode.super_ == raised] if self.device else []


def is_jetson_here() -> bool:
    """Whether this machine is a Jetson, by its device tree and L4T release file."""
    facts = {}
    for name in ("etc/nv_tegra_release", "sys/firmware/devicetree/base/compatible"):
        with suppress(OSError):
            root = Path(os.environ.get("HGKD_EDGE_SYSROOT", "/"))
            facts[Path(name).name] = (root / name).read_text(errors="replace")
    return board_from_facts(facts).is_jetson


def board_from_facts(facts: Mapping[str, str]) -> Board:
    """Parse the facts gathered by the script."""
    facts = defaultdict(str, {name: value[:_MOST_TEXT] for name, value in facts.items()})
    release = parse_release(facts["nv_tegra_release"], facts["packages"])
    compatible = facts["compatible"].lower()
    family = next((name for word, name in _TEGRA.items() if word in compatible), None)
    temperatures = _temperatures(facts["temperatures"])
    if release is None and family is None:
        return Board(is_jetson=False, temperatures_c=temperatures)
    mode, mode_id = parse_nvpmodel(facts["nvpmodel"])
    gpu = parse_jetson_clocks(facts["jetson_clocks"]) or _devfreq_clocks(facts["devfreq"])
    mode_line = r"^\s*<\s*POWER_MODEL\s+ID=\d+\s+NAME=(\S+?)\s*>"
    tensorrt = re.search(r"^libnvinfer\S* (\d\S*)", facts["packages"], re.MULTILINE)
    return Board(
        is_jetson=True,
        model=facts["model"] or (f"Jetson ({family})" if family else None),
        device=_recognize(compatible, facts["model"].lower()),
        l4t=release,
        jetpack=_jetpack(release) if release else None,
        tensorrt_package=tensorrt[1] if tensorrt else None,
        power_mode=mode,
        power_mode_id=mode_id,
        power_modes=re.findall(mode_line, facts["nvpmodel_conf"], re.MULTILINE),
        clocks_locked=gpu["min"] == gpu["max"] if gpu else None,
        gpu_mhz=gpu,
        temperatures_c=temperatures,
    )


def parse_release(text: str, packages: str = "") -> str | None:
    """`# R36 (release), REVISION: 4.3, ...` -> 36.4.3; else from the package nvidia-l4t-core."""
    match = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", text)
    if match:
        return f"{match[1]}.{match[2]}"
    match = re.search(r"nvidia-l4t-core (\d+\.\d+(?:\.\d+)?)", packages)
    return match[1] if match else None


def parse_nvpmodel(text: str) -> tuple[str | None, int | None]:
    """`NV Power Mode: MODE_15W_6CORE` and, on a separate line, `2`."""
    name = re.search(r"NV Power Mode:\s*(\S+)", text)
    number = re.search(r"^\s*(\d{1,3})\s*$", text, re.MULTILINE)
    return (name[1] if name else None), (int(number[1]) if number else None)


def parse_jetson_clocks(text: str) -> dict[str, float] | None:
    """GPU clocks in MHz from `jetson_clocks --show`; the line is named gpu-gpc-0 on Thor."""
    match = re.search(
        r"^(?:GPU|gpu-gpc-0)\s+MinFreq=(\d{1,15})\s+MaxFreq=(\d{1,15})\s+CurrentFreq=(\d{1,15})\b",
        text,
        re.MULTILINE | re.IGNORECASE,
    )
    return _clocks(match.groups()) if match else None


def _devfreq_clocks(table: str) -> dict[str, float] | None:
    """Parse lines with a device's path, its name in the device tree, and min, max, current Hz."""
    for line in table.splitlines():
        path, *fields = [field.strip() for field in line.split("\t")]
        name = (fields[0] if fields and fields[0] else path).lower()
        known = name in _GPU_NODES or any(name.endswith(f".{node}") for node in _GPU_NODES)
        clocks = tuple(one for one in fields[1:] if re.fullmatch("[1-9][0-9]{0,14}", one))
        if known and len(clocks) == 3:
            return _clocks(clocks)
    return None


def _clocks(hertz: tuple[str, ...]) -> dict[str, float]:
    return {key: int(hz) / 1e6 for key, hz in zip(("min", "max", "now"), hertz, strict=True)}


def _temperatures(table: str) -> dict[str, float]:
    """Temperatures in degrees from lines with a zone's path, its name, and millidegrees."""
    zone = r"^[^\t\n]*\t([^\t\n]+)\t(-?[0-9]{1,7})\s*$"
    return {name: int(value) / 1000 for name, value in re.findall(zone, table, re.MULTILINE)}


def _recognize(compatible: str, model: str) -> Device | None:
    """Identify by part number first; by the model's name where a kit hides the number."""
    devices = load_devices()
    for device in devices:
        if any(word in compatible for word in device.match.compatible):
            return device
    hits = [(word, device) for device in devices for word in device.match.model if word in model]
    return max(hits, key=lambda hit: len(hit[0]))[1] if hits else None


def _jetpack(release: str) -> str | None:
    """The JetPack of an L4T release; an unknown point release names its nearest known one."""
    known = load_jetpacks()
    for entry in known:
        if release == entry.l4t or release.startswith(entry.l4t + "."):
            return entry.jetpack
    family = [entry for entry in known if entry.l4t.split(".")[0] == release.split(".")[0]]
    return f"about {family[-1].jetpack} (L4T {release} is not in the table)" if family else None
