"""The precision to compute in, and the Accelerator that does it."""

from __future__ import annotations

import platform

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration

from hgkd_edge.engine.task import Workplace
from hgkd_edge.errors import RecipeError
from hgkd_edge.recipe import TrainConfig

__all__ = ["make_accelerator", "resolve_precision"]


def resolve_precision(precision: str) -> str:
    """`auto` becomes bf16 where the CPU or GPU computes in it, else fp32.

    Raises:
        RecipeError: fp16 is asked for on a CPU.
    """
    on_gpu = torch.cuda.is_available()
    if precision == "auto":
        has_bf16 = torch.cuda.is_bf16_supported() if on_gpu else _cpu_has_bf16()
        return "bf16" if has_bf16 else "fp32"
    if precision == "fp16" and not on_gpu:
        raise RecipeError("train.precision = 'fp16': needs a GPU", hint="use bf16, fp32 or auto")
    return precision


def _cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for bf16.

    On x86 oneDNN also takes bf16 where it must emulate it: that is four times slower than fp32.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def make_accelerator(config: TrainConfig, place: Workplace) -> Accelerator:
    """An Accelerator of its own for each training of a process, whatever the one before was."""
    precision = resolve_precision(config.precision)
    AcceleratorState._reset_state()  # else a second training could not choose another precision
    folder = str(place.tracker_dir) if place.tracker_dir else None
    return Accelerator(
        cpu=not torch.cuda.is_available(),  # without it, several processes would not find together
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=list(config.trackers) or None if folder else None,
        project_config=ProjectConfiguration(project_dir=folder, logging_dir=folder),
    )
