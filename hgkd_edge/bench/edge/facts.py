"""Raw facts -> which Jetson this is, its software, and whether its clocks are set for measuring.

Tolerant by design: an unknown L4T or a missing tool leaves a gap, not an error.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from hgkd_edge.bench.devices import device_table
from hgkd_edge.bench.edge.tegrastats import is_temperature
from hgkd_edge.bench.environment import cpu_name
from hgkd_edge.bench.records import Machine

__all__ = [
    "clock_warnings",
    "gpu_clocks",
    "is_jetson_here",
    "machine_of",
    "parse_nvpmodel",
    "parse_release",
]

# Names of the GPU in the device tree: Xavier, Orin; `gpu` on older ones; gpu-gpc-0 on Thor.
_GPU_NODES = ("gv11b", "ga10b", "gp10b", "gpu", "gpu-gpc-0")
_MOST_TEXT = 1 << 18  # characters of one fact, such as the help of trtexec


def clock_warnings(machine: Machine) -> list[str]:
    """Reasons why a measurement taken on this board now may mislead."""
    if not machine.is_jetson:
        return []
    notes = []
    if machine.power_mode is None:
        notes.append(
            "the power mode is unknown (nvpmodel -q printed nothing): clocks may be capped"
        )
    elif (cap := _cap(machine)) is not None:
        notes.append(
            f"power mode {machine.power_mode} caps the clocks{cap}: faster modes exist; list them "
            "with nvpmodel -p, set one with sudo nvpmodel -m ID"
        )
    if machine.clocks_locked is False:
        notes.append(
            "clocks are not locked: short runs see low clocks, tails grow; sudo jetson_clocks"
        )
    elif machine.clocks_locked is None:
        notes.append("cannot tell whether the clocks are locked")
    hottest = max((machine.temperatures_c or {}).values(), default=0.0)
    if hottest >= 85:
        notes.append(f"{hottest:.0f} C already: thermal throttling is near")
    return notes


def _cap(machine: Machine) -> str | None:
    """By how much the power mode caps the GPU, where known; None for the fastest mode."""
    name, names = machine.power_mode or "", machine.power_modes or []
    if name.startswith("MAXN"):
        return None
    # The table's modes of the configuration that this board is flashed with.
    raised = any("SUPER" in one for one in [*names, name])
    known = next((one for one in device_table().devices if one.id == machine.device_id), None)
    modes = [mode for mode in known.modes if mode.super_ == raised] if known else []
    fastest = max((mode.gpu_mhz for mode in modes), default=0)
    plain = name.removeprefix("MODE_")
    mode = next((one for one in modes if one.name.removeprefix("MODE_") == plain), None)
    if mode is None:
        return ""
    if mode.gpu_mhz < fastest:
        return f" (GPU {mode.gpu_mhz} of {fastest} MHz)"
    return None if names and not any(one.startswith("MAXN") for one in names) else ""


def is_jetson_here() -> bool:
    """Whether this machine is a Jetson, by its device tree and L4T release file."""
    facts = {}
    for name in ("etc/nv_tegra_release", "sys/firmware/devicetree/base/compatible"):
        with suppress(OSError):
            root = Path(os.environ.get("HGKD_EDGE_SYSROOT", "/"))
            facts[Path(name).name] = (root / name).read_text(errors="replace")
    return bool(machine_of(facts).is_jetson)


def machine_of(facts: Mapping[str, str]) -> Machine:
    """Parse the facts gathered by the script."""
    facts = defaultdict(str, {name: value[:_MOST_TEXT] for name, value in facts.items()})
    release = parse_release(facts["nv_tegra_release"])
    compatible, model = facts["compatible"].lower(), facts["model"]
    load = re.match(r"[0-9]{1,6}\.[0-9]{1,2}", facts["loadavg"])
    machine = Machine(
        is_jetson=release is not None or "tegra" in compatible,
        machine=facts["machine"] or None,
        device=model or cpu_name(facts["cpuinfo"]) or facts["machine"] or None,
        governor=facts["governor"] or None,
        load_average_1min=float(load[0]) if load else None,
        os=facts["system"] or None,
        python=facts["python"] or None,
        temperatures_c=_temperatures(facts["temperatures"]),
        cores=_count(facts["cores"]),
        usable_cores=_count(facts["usable_cores"]),
    )
    if not machine.is_jetson:
        return machine
    mode, mode_id = parse_nvpmodel(facts["nvpmodel"])
    mode_line = r"^[ \t]*<[ \t]*POWER_MODEL[ \t]+ID=\d+[ \t]+NAME=([^\s>]+)[ \t]*>"
    gpu = gpu_clocks(facts["devfreq"])
    of_jetson = {
        "device": model or "Jetson",
        "device_id": _recognize(compatible, model.lower()),
        "l4t": release,
        "jetpack": _jetpack(release) if release else None,
        "power_mode": mode,
        "power_mode_id": mode_id,
        "power_modes": re.findall(mode_line, facts["nvpmodel_conf"], re.MULTILINE),
        "clocks_locked": gpu["min"] == gpu["max"] if gpu else None,
        "gpu_mhz": gpu,
    }
    return machine.model_copy(update=of_jetson)


def _count(text: str) -> int | None:
    return int(text[:9]) if text[:9].isdecimal() else None


def parse_release(text: str) -> str | None:
    """`# R36 (release), REVISION: 4.3, ...` -> 36.4.3."""
    match = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", text)
    return f"{match[1]}.{match[2]}" if match else None


def parse_nvpmodel(text: str) -> tuple[str | None, int | None]:
    """`NV Power Mode: MODE_15W_6CORE` and, on a separate line, `2`."""
    name = re.search(r"NV Power Mode:\s*(\S+)", text)
    number = re.search(r"^[ \t]*(\d{1,3})[ \t]*$", text, re.MULTILINE)
    return (name[1] if name else None), (int(number[1]) if number else None)


def gpu_clocks(devfreq: str) -> dict[str, float] | None:
    """MHz from lines with a device's path, its name in the device tree, and min, max, current Hz.

    `jetson_clocks --show` prints the same, but to root only.
    """
    for line in devfreq.splitlines():
        path, *fields = [field.strip() for field in line.split("\t")]
        name = (fields[0] if fields and fields[0] else path).lower()
        known = name in _GPU_NODES or any(name.endswith(f".{node}") for node in _GPU_NODES)
        clocks = [int(one) / 1e6 for one in fields[1:] if re.fullmatch("[1-9][0-9]{0,14}", one)]
        if known and len(clocks) == 3:
            return dict(zip(("min", "max", "now"), clocks, strict=True))
    return None


def _temperatures(table: str) -> dict[str, float]:
    """Temperatures in degrees from lines with a zone's path, its name, and millidegrees."""
    zone = r"^[^\t\n]*\t([^\t\n]+)\t(-?[0-9]{1,7})\s*$"
    found = {name: int(value) / 1000 for name, value in re.findall(zone, table, re.MULTILINE)}
    return {name: value for name, value in found.items() if is_temperature(name, value)}


def _recognize(compatible: str, model: str) -> str | None:
    """Identify by part number first; by the model's name where a kit hides the number."""
    devices = device_table().devices
    for device in devices:
        if any(word in compatible for word in device.match.compatible):
            return device.id
    hits = [(word, device.id) for device in devices for word in device.match.model if word in model]
    return max(hits, key=lambda hit: len(hit[0]))[1] if hits else None


def _jetpack(release: str) -> str | None:
    """The JetPack of an L4T release; an unknown point release names its nearest known one."""
    known = device_table().jetpacks
    for entry in known:
        if release == entry.l4t or release.startswith(entry.l4t + "."):
            return entry.jetpack
    family = [entry for entry in known if entry.l4t.split(".")[0] == release.split(".")[0]]
    return f"about {family[-1].jetpack} (L4T {release} is not in the table)" if family else None
