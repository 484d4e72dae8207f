"""Sets up mixed precision, memory allocation and the Accelerator."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import TensorBoardTracker, get_available_trackers
from accelerate.utils import ProjectConfiguration

from hgkd_edge.engine.interface import Workplace
from hgkd_edge.errors import RecipeError, reason_of
from hgkd_edge.recipe_sections import TrainConfig

__all__ = ["check_machine", "keep_freed_memory", "make_accelerator", "resolve_precision"]

# Names and numbers from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def check_machine(config: TrainConfig) -> None:
    """Refuse settings that this machine does not support, before any image is read.

    Raises:
        RecipeError: fp16 without a GPU, a tracker that is not installed, or a compiled teacher
            without a working compiler.
    """
    resolve_precision(config.precision)
    _require_trackers(config.trackers)
    if config.compile:
        _require_compiler()


def _require_trackers(names: Sequence[str]) -> None:
    installed = {tracker.value for tracker in get_available_trackers()}
    missing = [name for name in names if name not in installed]
    if missing:
        raise RecipeError(
            f"train.trackers: {missing[0]} is not installed",
            hint=f"pip install {' '.join(missing)}, or remove it from train.trackers",
        )


def _require_compiler() -> None:
    """Compile a one-line function: a missing component can fail in many ways."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(8, device=device))
    except Exception as error:
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise RecipeError(
            f"train.compile = true: nothing can be compiled here ({reason})",
            hint="set train.compile to false, or install a C++ compiler (g++)",
        ) from error


def resolve_precision(precision: str) -> str:
    """Resolve `auto` to bf16 if it is faster on this CPU or GPU, else fp32.

    Raises:
        RecipeError: fp16 is requested on a CPU.
    """
    on_gpu = torch.cuda.is_available()
    if precision == "auto":
        faster = torch.cuda.is_bf16_supported() if on_gpu else _bf16_is_faster_on_this_cpu()
        return "bf16" if faster else "fp32"
    if precision == "fp16" and not on_gpu:
        raise RecipeError("train.precision = 'fp16': needs a GPU", hint="use bf16, fp32 or auto")
    return precision


def _bf16_is_faster_on_this_cpu() -> bool:
    """Whether the CPU computes faster in bf16 than in fp32.

    On x86, oneDNN also accepts bf16 if it must emulate it, which is four times slower than fp32.
    Intel's AVX512_BF16 without AMX is slower, too: on a Sapphire Rapids whose AMX a virtual
    machine hides, convolutions and products of matrices had 0.6 times the speed of fp32, and an
    update of ResNet-18 0.8 times. On AMD's CPUs the same instructions are faster than fp32.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if torch.cpu._is_amx_tile_supported():
        return torch.cpu._init_amx()  # whether the kernel allows it
    return torch.cpu._is_avx512_bf16_supported() and "GenuineIntel" not in _cpu_vendor()


def _cpu_vendor() -> str:
    """Text with the vendor's name as CPUID has it: on Linux /proc/cpuinfo, on Windows one line."""
    file = Path("/proc/cpuinfo")
    return file.read_text() if file.is_file() else platform.processor()


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the kernel (mallopt(3)).

    A step's tensors are as large as the previous step's, and new memory from the kernel is zeroed
    page by page at first touch (see docs/training.md for the cost). From this call on, the process
    keeps its peak memory. Other C libraries are not changed.
    """
    if platform.libc_ver()[0] == "glibc":
        glibc = ctypes.CDLL(None)
        glibc.mallopt(M_MMAP_MAX, 0)  # no allocation gets a separate mapping
        glibc.mallopt(M_TRIM_THRESHOLD, -1)  # the heap's free end is not trimmed


def make_accelerator(config: TrainConfig, place: Workplace) -> Accelerator:
    """A separate Accelerator for each training in a process, whatever the previous one was."""
    precision = resolve_precision(config.precision)
    AcceleratorState._reset_state()  # else a second training could not choose another precision
    folder = str(place.tracker_dir) if place.tracker_dir else None
    if folder:
        _require_trackers(config.trackers)
    return Accelerator(
        cpu=not torch.cuda.is_available(),  # required for several processes to connect
        mixed_precision="no" if precision == "fp32" else precision,
        # None, not [], if there are none: Accelerate warns that [] are not installed.
        log_with=[_tracker(name, folder) for name in config.trackers] or None if folder else None,
        project_config=ProjectConfiguration(project_dir=folder, logging_dir=folder),
    )


def _tracker(name: str, folder: str) -> Any:
    """TensorBoard writes to `folder/tensorboard`; the other trackers get the project name."""
    return TensorBoardTracker("tensorboard", folder) if name == "tensorboard" else name
