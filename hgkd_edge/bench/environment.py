"""The measuring machine: everything needed to interpret or repeat a measurement."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

import hgkd_edge
from hgkd_edge.bench.records import Machine
from hgkd_edge.cells import counted

__all__ = ["cpu_name", "environment", "environment_warnings", "resident_mb", "tool_version"]

_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "polygraphy")
# The vector extensions that decide which kernels run.
_FEATURES = ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "asimddp", "sve"]


def environment() -> Machine:
    """CPU, cores this process may use, memory, OS, Python, runtime versions, governor, load."""
    cpuinfo, memory = _read("/proc/cpuinfo"), _first(r"^MemTotal:\s*(\d+)", _read("/proc/meminfo"))
    features = (_first(r"^(?:flags|Features)\s*:(.*)$", cpuinfo) or "").split()
    affinity = getattr(os, "sched_getaffinity", None)
    # CPU time limit of the container, in cores; there is none for "max".
    quota = re.match(r"(\d+) (\d+)", _read("/sys/fs/cgroup/cpu.max"))
    return Machine(
        machine=platform.machine(),
        cpu=cpu_name(cpuinfo) or platform.processor() or platform.machine(),
        cpu_features=[name for name in _FEATURES if name in features],
        cores=os.cpu_count(),
        usable_cores=len(affinity(0)) if affinity else os.cpu_count(),
        cgroup_cpus=int(quota[1]) / int(quota[2]) if quota else None,
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        memory_mb=int(memory) // 1024 if memory else None,
        load_average_1min=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages={name: found for name in _PACKAGES if (found := _package(name))},
    )


def environment_warnings(machine: Machine) -> list[str]:
    """Reasons why times on this machine are less reliable."""
    warnings = []
    load, cores = machine.load_average_1min, machine.usable_cores or 1
    if load is not None and load > 0.5 * cores:
        warnings.append(
            f"the machine was busy before the run (load {load:g} on {counted(cores, 'core')}): "
            "times may be too long; measure on an idle machine"
        )
    if machine.governor and machine.governor not in ("performance", "schedutil"):
        warnings.append(
            f"CPU governor is '{machine.governor}': clocks may be low; "
            "sudo cpupower frequency-set -g performance"
        )
    return warnings


def tool_version() -> str:
    """Version of hgkd-edge; the source tree's when it is not installed."""
    return _package("hgkd-edge") or hgkd_edge.__version__


def resident_mb() -> float | None:
    """Resident memory of this process in MiB; None where /proc is not there."""
    fields = _read("/proc/self/statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if fields else None


def cpu_name(cpuinfo: str) -> str | None:
    """The name of a CPU, from its /proc/cpuinfo."""
    return _first(r"^(?:model name|Hardware|Model)\s*:\s*(.+)$", cpuinfo)


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1].strip() if match else None


def _package(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
