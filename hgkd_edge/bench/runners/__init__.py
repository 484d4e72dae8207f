"""Runners: one file per runtime. A runner that cannot run here says why.

ort.py        ONNX Runtime: CPU, CUDA, TensorRT and OpenVINO providers
openvino.py   OpenVINO itself
tensorrt.py   TensorRT and TensorRT-RTX through Polygraphy
pytorch.py    PyTorch, eager and compiled: the reference point, only when asked for
"""

from __future__ import annotations

from hgkd_edge.bench.records import Refusal
from hgkd_edge.bench.runners.base import Case, Opened, Runner
from hgkd_edge.bench.runners.openvino import OpenVinoRunner
from hgkd_edge.bench.runners.ort import OrtRunner
from hgkd_edge.bench.runners.pytorch import TorchRunner
from hgkd_edge.bench.runners.tensorrt import TensorRtRunner
from hgkd_edge.errors import DeviceError

__all__ = ["Case", "Opened", "Runner", "all_runners", "list_runners", "runners_for"]

# What `--device` means when no runner is named.
_OF_DEVICE = {
    "cpu": ("ort-cpu",),
    "cuda": ("ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx"),
    "openvino": ("openvino",),
}


def all_runners() -> dict[str, Runner]:
    """Every runner by name, able to run here or not."""
    runners: list[Runner] = [
        OrtRunner("ort-cpu", "CPUExecutionProvider"),
        OrtRunner("ort-cuda", "CUDAExecutionProvider"),
        OrtRunner("ort-tensorrt", "TensorrtExecutionProvider"),
        OrtRunner("ort-openvino", "OpenVINOExecutionProvider"),
        OpenVinoRunner(),
        TensorRtRunner("tensorrt"),
        TensorRtRunner("tensorrt_rtx"),
        TorchRunner(compiled=False),
        TorchRunner(compiled=True),
    ]
    return {runner.name: runner for runner in runners}


def list_runners() -> list[tuple[str, Refusal | None]]:
    """(name, None) for a runner that works here, (name, why not) for one that does not."""
    return [(name, runner.refusal()) for name, runner in all_runners().items()]


def runners_for(device: str, names: tuple[str, ...]) -> tuple[list[Runner], list[Refusal]]:
    """The runners to measure with, and the ones of this device that cannot run here.

    Args:
        device: cpu, cuda or openvino.
        names: Runners asked for; empty takes the device's own.

    Raises:
        DeviceError: An unknown name, a named runner that cannot run, or none left for the device.
    """
    known = all_runners()
    for name in names:
        if name not in known:
            raise DeviceError(f"runner '{name}' is not known", hint=f"one of {', '.join(known)}")
    able, refused = [], []
    for name in names or _OF_DEVICE[device]:
        refusal = known[name].refusal()
        if refusal is None:
            able.append(known[name])
        elif names:
            raise DeviceError(f"runner '{name}': {refusal.reason}", hint=refusal.hint)
        else:
            refused.append(refusal)
    if not able:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in refused)
        hints = next((one.hint for one in refused if one.hint), "")
        raise DeviceError(f"nothing can run on --device {device} here ({reasons})", hint=hints)
    return able, refused
