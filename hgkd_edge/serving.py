"""A fine-tuned model that answers, whichever runtime it is a file of. No torch unless asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporters.onnx_info import onnx_info
from exporters.runners import Runner, onnx_runner
from hgkd_edge.errors import RunError
from hgkd_edge.run_files import require_recorded
from hgkd_edge.rundir import RunDir
from hgkd_edge.tasks.answers import GEOMETRY

__all__ = ["Served", "open_served"]


@dataclass(frozen=True)
class Served:
    """A model and what it says of itself.

    Attributes:
        run: Normalised images f32[B, 3, H, W] -> outputs by name, f32[B, ...].
        runtime: What runs it, for people.
        task: `classify`, `segment` or `detect`.
        classes: Class names in the order of the outputs.
        size: Height and width of its input in pixels.
        mean: Per-channel mean of its input, in [0, 1].
        std: Per-channel standard deviation, likewise.
    """

    run: Runner
    runtime: str
    task: str
    classes: tuple[str, ...]
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def open_served(path: Path) -> Served:
    """Open a fine-tuned model.

    Args:
        path: `model.safetensors` (PyTorch), `.onnx` (ONNX Runtime), `.xml` (OpenVINO), `.plan` or
            `.engine` (TensorRT; its ONNX file must lie beside it), or a run's folder or name.

    Raises:
        RunError: There is no such file, it is not a fine-tuned model of ours, or not the file that
            its run recorded.
        MissingExtraError: Its runtime is not installed.
    """
    if not path.suffix or path.is_dir():
        run = RunDir.resolve(path)
        path = run.require(run.model_file, mend=f"hgkd-edge finetune {run.path}")
    if path.suffix not in OPENERS:
        raise RunError(
            f"{path}: not a model file", hint=f"name a run folder or one of {', '.join(OPENERS)}"
        )
    if not path.is_file():
        raise RunError(f"{path}: there is no such file", hint="make a model: hgkd-edge finetune")
    require_recorded(path)
    return OPENERS[path.suffix](path)


def _open_torch(path: Path) -> Served:
    from exporters.runners import torch_runner
    from hgkd_edge.finetune import TASKS, load_model

    network, card = load_model(path)
    spec = card.backbone
    return Served(
        run=torch_runner(network, TASKS[card.task].output_names),
        runtime="PyTorch",
        task=card.task,
        classes=card.classes,
        size=spec.size,
        mean=spec.mean,
        std=spec.std,
    )


def _open_onnx(path: Path) -> Served:
    info = onnx_info(path)
    return _described(path, info.metadata, onnx_runner(path), "ONNX Runtime")


def _open_openvino(path: Path) -> Served:
    from exporters.openvino_export import openvino_metadata, openvino_runner

    run = openvino_runner(path)  # says what is wrong with a file that it cannot read
    return _described(path, openvino_metadata(path), run, "OpenVINO")


def _open_engine(path: Path) -> Served:
    from exporters.trt_engine import engine_runner

    source = path.with_suffix(".onnx")
    if not source.is_file():
        raise RunError(
            f"{path}: an engine says nothing of its classes",
            hint=f"put the ONNX file that it was built from beside it, as {source.name}",
        )
    run = engine_runner(path, onnx_path=source)
    return _described(path, onnx_info(source).metadata, run, "TensorRT")


OPENERS: dict[str, Callable[[Path], Served]] = {
    ".safetensors": _open_torch,
    ".onnx": _open_onnx,
    ".xml": _open_openvino,
    ".plan": _open_engine,
    ".engine": _open_engine,
}


def _described(path: Path, metadata: Mapping[str, str], run: Runner, runtime: str) -> Served:
    """Read what `export` wrote into the file."""
    if "hgkd_edge.baked" in metadata:
        inside = " and ".join(json.loads(metadata["hgkd_edge.baked"]))
        raise RunError(
            f"{path}: its {inside} is baked in, for a device that feeds frames",
            hint="name the plain file of the same export",
        )
    try:
        about: dict[str, Any] = {
            key: json.loads(metadata[f"hgkd_edge.{key}"])
            for key in ("task", "classes", "input_size", "mean", "std")
        }
    except (KeyError, ValueError) as error:
        raise RunError(
            f"{path}: does not say which task and classes it is for",
            hint="fine-tune the run and export it: hgkd-edge finetune, hgkd-edge export",
        ) from error
    if about["task"] not in GEOMETRY:
        raise RunError(
            f"{path}: is a bare backbone, which answers nothing",
            hint="fine-tune the run and export it: hgkd-edge finetune, hgkd-edge export",
        )
    return Served(
        run=run,
        runtime=runtime,
        task=about["task"],
        classes=tuple(about["classes"]),
        size=tuple(about["input_size"][1:]),
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
    )
