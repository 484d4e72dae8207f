"""The measuring machine: everything needed to interpret or repeat a measurement."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["environment", "environment_warnings", "resident_mb", "tool_version"]

_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "polygraphy")


def environment() -> dict[str, Any]:
    """CPU, cores this process may use, memory, OS, Python, runtime versions, governor, load."""
    return {
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpu_features": _cpu_features(),
        "cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "cgroup_cpus": _cgroup_cpus(),
        "governor": _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "memory_mb": _memory_mb(),
        "load_average_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _package(name))},
    }


def environment_warnings(facts: dict[str, Any]) -> list[str]:
    """Reasons why times on this machine are less reliable."""
    warnings = []
    load, cores = facts.get("load_average_1min"), facts.get("usable_cores") or 1
    if load is not None and load > 0.5 * cores:
        warnings.append(
            f"the machine was busy before the run (load {load:g} on {cores} cores): times may be "
            "too long; measure on an idle machine"
        )
    governor = facts.get("governor")
    if governor and governor not in ("performance", "schedutil"):
        warnings.append(
            f"CPU governor is '{governor}': clocks may be low; "
            "sudo cpupower frequency-set -g performance"
        )
    return warnings


def tool_version() -> str:
    """Version of hgkd-edge; the source tree's when it is not installed."""
    found = _package("hgkd-edge")
    if found is None:
        import hgkd_edge

        found = getattr(hgkd_edge, "__version__", None)
    return found or "unknown"


def resident_mb() -> float | None:
    """Resident memory of this process in MiB; None where /proc is not there."""
    fields = _read(Path("/proc/self/statm"))
    if fields is None:
        return None
    return int(fields.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _cpu_name() -> str:
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        if line.lower().startswith(("model name", "hardware")):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cpu_features() -> list[str]:
    """The vector extensions that decide which kernels run."""
    wanted = (
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "amx_tile",
        "asimd",
        "asimddp",
        "sve",
    )
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        if line.lower().startswith(("flags", "features")):
            have = set(line.split(":", 1)[1].split())
            return [name for name in wanted if name in have]
    return []


def _usable_cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _cgroup_cpus() -> float | None:
    """CPU time limit of the container in cores; None when there is none."""
    quota = (_read(Path("/sys/fs/cgroup/cpu.max")) or "max").split()
    if len(quota) != 2 or quota[0] == "max":
        return None
    return int(quota[0]) / int(quota[1])


def _memory_mb() -> int | None:
    for line in (_read(Path("/proc/meminfo")) or "").splitlines():
        if line.startswith("MemTotal"):
            return int(line.split()[1]) // 1024
    return None


def _package(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> str | None:
    if sys.platform == "win32":
        return None
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
