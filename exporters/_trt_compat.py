"""What differs between TensorRT 8.6, 10, 11 and TensorRT-RTX, in one place.

    release        precision comes from              flags needed         DLA
    8.5, 8.6       the ONNX types, as hints          FP16, INT8           with FP16/INT8 flags
    10.x           the ONNX types, strictly          none                 weakly typed, with flags
    11.x           the ONNX types, strictly          none (removed)       strictly typed (11.4.1 on)
    RTX            the ONNX types, strictly          none (removed)       none; targets listed SMs

Two packages share one API: `tensorrt` (also what JetPack installs) builds on the GPU it will run
on; `tensorrt_rtx` builds for a list of desktop GPU generations, without needing one.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from .errors import ExportError, MissingPackageError

__all__ = [
    "EXTRAS",
    "Flavor",
    "Typing",
    "available",
    "choose",
    "compute_capabilities",
    "gpu_name",
    "progress_monitor",
    "select_for_polygraphy",
    "typing_for",
]

EXTRAS = {"tensorrt": "trt", "tensorrt_rtx": "trt-rtx"}
_JETPACK = (
    "on a Jetson TensorRT comes with JetPack: make the environment with "
    "'python3 -m venv --system-site-packages', where python3 -c 'import tensorrt' works"
)


@dataclass(frozen=True)
class Flavor:
    """An importable TensorRT: `tensorrt` or `tensorrt_rtx`, and its version."""

    name: str
    version: str

    @property
    def major(self) -> int:
        """The first number of the version."""
        return int(self.version.split(".")[0])


@dataclass(frozen=True)
class Typing:
    """How a network's precision is set: strictly by its tensor types, or by builder flags."""

    strongly_typed: bool
    fp16: bool = False
    int8: bool = False

    def network_options(self) -> dict[str, bool]:
        """Polygraphy's network flags; TensorRT 8 has no strong typing."""
        return {"strongly_typed": True} if self.strongly_typed else {}

    def builder_options(self) -> dict[str, bool]:
        """Precision flags for the builder; TensorRT 11 has none."""
        return {name: True for name in ("fp16", "int8") if getattr(self, name)}


def available() -> tuple[Flavor, ...]:
    """The TensorRT packages that can be imported here, `tensorrt` first."""
    found = []
    for name in EXTRAS:
        try:
            found.append(Flavor(name, importlib.import_module(name).__version__))
        except (ImportError, OSError, RuntimeError):  # absent, or its libraries do not load
            continue
    return tuple(found)


def choose(backend: str | None, *, what: str = "building an engine") -> Flavor:
    """The flavor asked for, or the first one installed.

    Args:
        backend: A name of `EXTRAS`, or None.
        what: What needs it, for the error.

    Raises:
        ExportError: `backend` is not a name of `EXTRAS`.
        MissingPackageError: Nothing suitable is installed.
    """
    if backend is not None and backend not in EXTRAS:
        raise ExportError(
            f"unknown TensorRT backend '{backend}'", hint=f"one of {', '.join(EXTRAS)}"
        )
    found = available()
    for flavor in found:
        if backend in (None, flavor.name):
            return flavor
    if backend == "tensorrt_rtx":
        raise MissingPackageError(what, package=backend, extra="trt-rtx")
    others = "" if found else 'pip install "hgkd-edge[trt-rtx]" for RTX desktop GPUs; '
    raise MissingPackageError(what, package="tensorrt", extra="trt", more=others + _JETPACK)


def typing_for(flavor: Flavor, precision: str, *, dla: bool) -> Typing:
    """How to build a graph of this precision (`fp32`, `fp16` or `int8`) faithfully.

    Raises:
        ExportError: A DLA build that this release or precision does not allow.
    """
    if dla:
        _require_dla(flavor, precision)
    if flavor.name == "tensorrt_rtx" or flavor.major >= 11 or (flavor.major >= 9 and not dla):
        return Typing(strongly_typed=True)
    # INT8 graphs leave some layers unquantized; a DLA has no fp32 to run those in.
    half = precision == "fp16" or (dla and precision == "int8")
    return Typing(strongly_typed=False, fp16=half, int8=precision == "int8")


def _require_dla(flavor: Flavor, precision: str) -> None:
    if flavor.name == "tensorrt_rtx":
        raise ExportError("TensorRT-RTX has no DLA", hint="build with TensorRT on the Jetson")
    if precision == "fp32":
        raise ExportError("a DLA runs fp16 or int8 only", hint="export the network as fp16 first")


def select_for_polygraphy(flavor: Flavor) -> None:
    """Make Polygraphy use this flavor; it decides once per process, at import.

    Raises:
        ExportError: Polygraphy was already imported for the other flavor.
    """
    wanted = flavor.name == "tensorrt_rtx"
    decided = sys.modules.get("polygraphy.config")
    if decided is not None and wanted != decided.USE_TENSORRT_RTX:
        raise ExportError(
            f"this process uses Polygraphy with the other TensorRT, not with {flavor.name}",
            hint="load the engine in a separate process",
        )
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if flavor.name == "tensorrt_rtx" else "0"


def compute_capabilities(trt: ModuleType, wanted: Sequence[str] | None) -> list[str]:
    """Check target compute capabilities such as "8.6"; None means Ampere and all newer ones.

    That is also TensorRT-RTX's default. Turing (7.5) has no FP32 matrix product: only FP16 networks
    can be built for it, and only when it is listed.

    Raises:
        ExportError: A capability this release cannot target; Jetsons need TensorRT itself.
    """
    names = [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    known = [f"{name[2:-1]}.{name[-1]}" for name in names]
    for capability in wanted or ():
        if capability not in known:
            raise ExportError(
                f"TensorRT-RTX {trt.__version__} cannot build for compute capability {capability}",
                hint=f"one of {', '.join(known)}; for a Jetson, build there with TensorRT",
            )
    return list(wanted) if wanted else [capability for capability in known if capability != "7.5"]


def progress_monitor(trt: ModuleType, report: Callable[[str, int, int], None]) -> Any | None:
    """A monitor that calls `report(phase, step, steps)`; None on releases that have none."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            report(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            report(phase_name, step + 1, self._steps.get(phase_name, step + 1))
            return True

        def phase_finish(self, phase_name: str) -> None:
            steps = self._steps.pop(phase_name, 1)
            report(phase_name, steps, steps)

    return Monitor()


def gpu_name() -> str | None:
    """Name of the first NVIDIA GPU from the driver, such as "Orin (SM 8.7)"; None without one."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(128)
    capability_major, capability_minor = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
    failed = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetName(name, len(name), device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), capability_major, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), capability_minor, device)
    )
    return None if failed else f"{name.value.decode()} (SM {major.value}.{minor.value})"
