"""What this machine can do, and what to install for the rest. Imports nothing heavy."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata, util

from hgkd_edge.cells import counted

__all__ = ["Capability", "examine"]

DISTRIBUTIONS = {"modelopt": "nvidia-modelopt"}  # import name -> name to install, where they differ


@dataclass(frozen=True)
class Capability:
    """One feature and whether it is available.

    Attributes:
        name: What it is for.
        available: Whether all requirements are installed.
        found: What is installed, with versions.
        hint: How to install what is missing; '' if nothing is.
    """

    name: str
    available: bool
    found: str
    hint: str = ""


def examine() -> list[Capability]:
    """Inspect the machine and the installed packages."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    python = f"Python {platform.python_version()}"
    machine = f"{python}, {platform.machine()}, {counted(cores or 1, 'CPU core')}"
    return [
        Capability("this machine", True, machine),
        _packages("bench on ONNX Runtime", ["onnx", "onnxruntime"], extra=""),
        _packages(
            "distill, evaluate, export from PyTorch",
            ["torch", "torchvision", "timm", "accelerate", "safetensors", "onnxscript"],
            extra="train",
        ),
        _gpu(),
        _tensorrt(),
        _packages("OpenVINO", ["openvino"], extra="openvino"),
        _packages("predict on videos, cameras and streams", ["av"], extra="video"),
        _packages("charts in reports", ["matplotlib"], extra="report"),
        _packages("quantization-aware fine-tuning", ["modelopt"], extra="qat"),
        _packages("Hugging Face datasets", ["datasets"], extra="hf"),
        _packages("teacher pre-training with iBOT", ["lightly"], extra="ibot"),
        _spconv(),
    ]


def _packages(name: str, packages: list[str], *, extra: str) -> Capability:
    versions = {package: _version(package) for package in packages}
    missing = [package for package, version in versions.items() if version is None]
    found = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
    wanted = f"hgkd-edge[{extra}]" if extra else "hgkd-edge"
    return Capability(name, not missing, found, f'pip install "{wanted}"' if missing else "")


def _tensorrt() -> Capability:
    flavors = {name: _version(name) for name in ("tensorrt", "tensorrt_rtx")}
    found = ", ".join(f"{name} {version}" for name, version in flavors.items() if version)
    polygraphy = _version("polygraphy")
    if found and polygraphy:
        return Capability("TensorRT engines", True, f"{found}, polygraphy {polygraphy}")
    hint = 'pip install "hgkd-edge[trt]", or "hgkd-edge[trt-rtx]" (builds without a GPU)'
    return Capability("TensorRT engines", False, found, hint)


def _spconv() -> Capability:
    """spconv's distributions are named after CUDA releases; all share one import name."""
    there = util.find_spec("spconv") is not None
    hint = "" if there else 'pip install "hgkd-edge[spconv]" (optional, for CUDA)'
    return Capability("spconv sparse backend", there, "spconv" if there else "", hint)


def _gpu() -> Capability:
    """Ask the driver's own tool: importing torch would take seconds."""
    there = shutil.which("nvidia-smi") is not None or os.path.exists("/dev/nvidia0")
    hint = "" if there else "none found: everything runs on the CPU, training slowly"
    return Capability("NVIDIA GPU", there, "driver found" if there else "", hint)


def _version(package: str) -> str | None:
    if util.find_spec(package) is None:
        return None
    try:
        return metadata.version(DISTRIBUTIONS.get(package, package.replace("_", "-")))
    except metadata.PackageNotFoundError:
        return "(version unknown)"
