"""What this machine says about itself, raw: it is read and judged at the other end."""

import glob
import os
import platform
import shutil
import subprocess
import sys
from typing import Optional

# In a container the device's own files are often mounted elsewhere (`-v /:/host:ro`).
ROOT = os.environ.get("HGKD_EDGE_SYSROOT", "/")

FILES = {
    "nv_tegra_release": "etc/nv_tegra_release",
    "model": "sys/firmware/devicetree/base/model",
    "compatible": "sys/firmware/devicetree/base/compatible",
    "cpuinfo": "proc/cpuinfo",
    "meminfo": "proc/meminfo",
    "loadavg": "proc/loadavg",
    "nvpmodel_conf": "etc/nvpmodel.conf",
    "governor": "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
}
_PACKAGES = ("nvidia-l4t-core", "nvidia-jetpack", "libnvinfer8", "libnvinfer10", "libnvinfer-bin")


def read(path: str) -> Optional[str]:
    """Text of a file under ROOT; NUL separators of the device tree become newlines."""
    try:
        with open(os.path.join(ROOT, path), "rb") as file:
            return file.read(200000).replace(b"\0", b"\n").decode("utf-8", "replace").strip()
    except OSError:
        return None


def ask(argv: list, timeout: float = 20) -> Optional[str]:
    """Output of a command, both streams; None when it is not there or hangs."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace")


def trtexec_path() -> Optional[str]:
    """trtexec on PATH, or where JetPack puts it."""
    found = shutil.which("trtexec")
    usual = "/usr/src/tensorrt/bin/trtexec"
    return found or (usual if os.access(usual, os.X_OK) else None)


def devfreq() -> list:
    """Each devfreq device with its name in the device tree and its clocks in Hz."""
    seen = []
    for folder in sorted(glob.glob(os.path.join(ROOT, "sys/class/devfreq/*"))):
        node = os.path.relpath(folder, ROOT)
        entry: dict = {
            "path": os.path.basename(folder),
            "name": read(node + "/device/of_node/name"),
        }
        for key in ("min_freq", "max_freq", "cur_freq"):
            text = read(node + "/" + key)
            entry[key] = int(text) if text and text.isdigit() else None
        seen.append(entry)
    return seen


def temperatures() -> dict:
    """Thermal zones in degrees Celsius; zones that cannot be read are left out."""
    seen = {}
    for zone in sorted(glob.glob(os.path.join(ROOT, "sys/class/thermal/thermal_zone*"))):
        node = os.path.relpath(zone, ROOT)
        kind, text = read(node + "/type"), read(node + "/temp")
        if kind and text and text.lstrip("-").isdigit():
            seen[kind] = int(text) / 1000.0
    return seen


def overcurrent_events() -> dict:
    """Count of over-current throttling events since boot (Orin and later); {} elsewhere."""
    seen = {}
    for path in glob.glob(os.path.join(ROOT, "sys/class/hwmon/hwmon*/oc*_event_cnt")):
        text = read(os.path.relpath(path, ROOT))
        if text and text.isdigit():
            seen[os.path.basename(path)] = int(text)
    return seen


def gather() -> dict:
    """Everything, as one dictionary of raw texts."""
    facts: dict = {name: read(path) for name, path in FILES.items()}
    facts["packages"] = ask(["dpkg-query", "-W", "-f", "${Package} ${Version}\n"] + list(_PACKAGES))
    facts["nvpmodel"] = ask(["nvpmodel", "-q"])
    # The tool refuses anyone but root; devfreq below says the same to everybody.
    facts["jetson_clocks"] = ask(["jetson_clocks", "--show"]) if os.geteuid() == 0 else None
    facts["devfreq"] = devfreq()
    facts["temperatures"] = temperatures()
    trtexec = trtexec_path()
    facts["trtexec"] = trtexec
    facts["trtexec_help"] = ask([trtexec, "--help"], timeout=60) if trtexec else None
    facts["tegrastats"] = shutil.which("tegrastats")
    if not trtexec:  # importing it takes a Nano several seconds
        facts["onnxruntime"] = ask(
            [sys.executable, "-c", "import onnxruntime, numpy; print(onnxruntime.__version__)"], 60
        )
    facts["python"] = platform.python_version()
    facts["machine"] = platform.machine()
    facts["system"] = platform.system() + " " + platform.release()
    facts["cores"] = os.cpu_count()
    facts["usable_cores"] = len(os.sched_getaffinity(0))
    return facts
