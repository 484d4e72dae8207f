"""Raw facts -> which Jetson this is, its software, and whether its clocks allow a meaningful
result. Tolerant by design: an unknown L4T or a missing tool leaves a gap, not an error."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hgkd_edge.bench.devices import Device, JetPack, Mode, load_devices, load_jetpacks

__all__ = [
    "Board",
    "board_from_facts",
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
        entry["device"] = self.model or _cpu(facts)
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
        elif not self.power_mode.startswith("MAXN") and not self._is_fastest():
            notes.append(
                f"power mode {self.power_mode} caps the clocks{self._mode_cap()}: faster modes "
                "exist; list them with nvpmodel -p, set one with sudo nvpmodel -m ID"
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

    def _modes(self) -> list[Mode]:
        """The table's modes of the configuration that this board is flashed with."""
        if self.device is None:
            return []
        raised = any("SUPER" in name for name in [*self.power_modes, self.power_mode or ""])
        return [mode for mode in self.device.modes if mode.super_ == raised]

    def _mode(self) -> Mode | None:
        plain = (self.power_mode or "").removeprefix("MODE_")
        hits = [mode for mode in self._modes() if mode.name.removeprefix("MODE_") == plain]
        return hits[0] if hits else None

    def _is_fastest(self) -> bool:
        """Whether no mode of this board has a faster GPU or is called MAXN."""
        mode = self._mode()
        return (
            mode is not None
            and bool(self.power_modes)
            and not any(name.startswith("MAXN") for name in self.power_modes)
            and mode.gpu_mhz >= max(one.gpu_mhz for one in self._modes())
        )

    def _mode_cap(self) -> str:
        mode = self._mode()
        fastest = max((one.gpu_mhz for one in self._modes()), default=0)
        if mode is None or mode.gpu_mhz >= fastest:
            return ""
        return f" (GPU {mode.gpu_mhz} of {fastest} MHz)"


def board_from_facts(facts: Mapping[str, str]) -> Board:
    """Parse the facts gathered by the script."""
    text = {name: value[:_MOST_TEXT] for name, value in facts.items()}
    facts = defaultdict(str, text)
    release = parse_release(facts["nv_tegra_release"], facts["packages"])
    compatible = facts["compatible"].lower()
    temperatures = _temperatures(facts["temperatures"])
    is_jetson = release is not None or any(name in compatible for name in _TEGRA)
    if not is_jetson:
        return Board(is_jetson=False, temperatures_c=temperatures)
    mode, mode_id = parse_nvpmodel(facts["nvpmodel"])
    shown = parse_jetson_clocks(facts["jetson_clocks"])
    gpu = shown or _devfreq_clocks(facts["devfreq"])
    return Board(
        is_jetson=True,
        model=facts["model"] or _family(compatible),
        device=_recognize(compatible, facts["model"].lower()),
        l4t=release,
        jetpack=_jetpack(release),
        tensorrt_package=_package(facts["packages"], "libnvinfer"),
        power_mode=mode,
        power_mode_id=mode_id,
        power_modes=re.findall(
            r"^\s*<\s*POWER_MODEL\s+ID=\d+\s+NAME=(\S+?)\s*>",
            facts["nvpmodel_conf"],
            re.MULTILINE,
        ),
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
    if match is None:
        return None
    low, high, now = (int(part) / 1e6 for part in match.groups())
    return {"min": low, "max": high, "now": now}


def _devfreq_clocks(table: str) -> dict[str, float] | None:
    """Parse lines with a device's path, its name in the device tree, and min, max, current Hz."""
    for line in table.splitlines():
        path, *fields = [field.strip() for field in line.split("\t")]
        name = (fields[0] if fields and fields[0] else path).lower()
        known = name in _GPU_NODES or any(name.endswith(f".{node}") for node in _GPU_NODES)
        clocks = [int(one) for one in fields[1:] if re.fullmatch("[1-9][0-9]{0,14}", one)]
        if known and len(clocks) == 3:
            return {key: hz / 1e6 for key, hz in zip(("min", "max", "now"), clocks, strict=True)}
    return None


def _temperatures(table: str) -> dict[str, float]:
    """Temperatures in degrees from lines with a zone's path, its name, and millidegrees."""
    return {
        name: int(value) / 1000
        for name, value in re.findall(r"^[^\t\n]*\t([^\t\n]+)\t(-?[0-9]{1,7})\s*$", table, re.M)
    }


def _recognize(compatible: str, model: str) -> Device | None:
    """Identify by part number first; by the model's name where a kit hides the number."""
    for device in load_devices():
        if any(word in compatible for word in device.match.compatible):
            return device
    hits = [
        (len(word), device)
        for device in load_devices()
        for word in device.match.model
        if word in model
    ]
    return max(hits, key=lambda hit: hit[0])[1] if hits else None


def _family(compatible: str) -> str | None:
    return next((f"Jetson ({name})" for word, name in _TEGRA.items() if word in compatible), None)


def _jetpack(release: str | None) -> str | None:
    """The JetPack of an L4T release; an unknown point release names its nearest known one."""
    if release is None:
        return None
    known: list[JetPack] = load_jetpacks()
    for entry in known:
        if release == entry.l4t or release.startswith(entry.l4t + "."):
            return entry.jetpack
    family = [entry for entry in known if entry.l4t.split(".")[0] == release.split(".")[0]]
    return f"about {family[-1].jetpack} (L4T {release} is not in the table)" if family else None


def _package(packages: str, prefix: str) -> str | None:
    match = re.search(rf"^{prefix}\S* (\d\S*)", packages, re.MULTILINE)
    return match[1] if match else None


def _cpu(facts: Mapping[str, str]) -> str | None:
    match = re.search(r"^(?:model name|Hardware|Model)\s*:\s*(.+)$", facts.get("cpuinfo", ""), re.M)
    return match[1].strip() if match else facts.get("machine") or None
