"""`nn.Module` -> one ONNX file: free batch and size, layers named as in PyTorch, metadata inside.

The graph goes through PyTorch's dynamo exporter, is lowered to opset 17 (which TensorRT 8.6, 10 and
11 all read, see `_opset17`), cleaned, checked, and run at several batch sizes before it gets its
final name. `exporters.verify` checks that the *numbers* agree.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from ._graph import name_after_modules
from ._onnx_trial import check_graph, try_shapes
from ._opset17 import OPSET, lower_to_opset17
from ._traced import in_onnx_operators
from .atomic_files import new_artifact
from .errors import ConversionFailed, ExportError, MissingPackageError, reason_of
from .onnx_info import OnnxInfo, TensorInfo, onnx_info
from .quiet import quiet

__all__ = ["INPUT_NAME", "OnnxExport", "export_onnx"]

log = logging.getLogger(__name__)

INPUT_NAME = "images"
_TRACED_OPSET = 18  # the lowest that the dynamo exporter writes itself
_TRACED_BATCH = 2  # torch.export takes a batch of 1 for a constant, see pytorch issue 157621
_ONE_FILE_LIMIT = 2**31 - 2**20  # protobuf's 2 GiB, less room for the graph itself


@dataclass(frozen=True)
class OnnxExport:
    """An ONNX file that was written, checked and run."""

    path: Path
    sha256: str
    size_bytes: int
    opset: int | None
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    dynamic_batch: bool
    dynamic_size: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "path": str(self.path)}


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    input_size: tuple[int, int, int],
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    output_names: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> OnnxExport:
    """Export a model to a single ONNX file.

    Args:
        model: Takes f32[B, 3, H, W], returns one tensor or a list of tensors. Not changed.
        path: Where to write; the folder is made if need be.
        input_size: (C, H, W) of one image.
        dynamic_batch: False fixes the batch to 1, for runtimes that want every shape fixed.
        dynamic_size: Keep height and width free as well. OpenVINO and TensorRT optimize better for
            a fixed size, and INT8 ranges apply to the calibrated size.
        output_names: By default `logits` or `embedding` for one [B, K] output, `output` for any
            other single one, and `stride4`, `stride8`, ... for feature maps.
        metadata: Written into the file (classes, mean, std, provenance, ...); keys and values text.

    Returns:
        What was written.

    Raises:
        ExportError: Bad arguments, or `path` cannot be written.
        ConversionFailed: The model has something ONNX cannot express, or an axis is not free.
    """
    _require_exporter()
    traced = copy.deepcopy(model).cpu().float().eval()
    example = torch.zeros(_TRACED_BATCH if dynamic_batch else 1, *input_size)
    names = list(output_names) if output_names else None
    outputs = _try_model(traced, example)
    names = names or _output_names(model, outputs, height=input_size[1])
    if len(names) != len(outputs):
        raise ExportError(
            f"the model has {len(outputs)} outputs, but {len(names)} names were given: {names}"
        )
    free = _free_axes(dynamic_batch, dynamic_size)
    proto = _convert(traced, example, free, output_names=names)
    _finish(proto, free, metadata or {})
    with new_artifact(path) as temporary:
        _save(proto, temporary)
        check_graph(temporary)
        try_shapes(temporary, traced, input_size, free=list(free.values()))
        info = onnx_info(temporary)
    return _described(info, Path(path), dynamic_batch, dynamic_size)


def _described(info: OnnxInfo, path: Path, dynamic_batch: bool, dynamic_size: bool) -> OnnxExport:
    return OnnxExport(
        path=path,
        sha256=info.sha256,
        size_bytes=info.size_bytes,
        opset=info.opset,
        inputs=info.inputs,
        outputs=info.outputs,
        dynamic_batch=dynamic_batch,
        dynamic_size=dynamic_size,
    )


def _free_axes(dynamic_batch: bool, dynamic_size: bool) -> dict[int, str]:
    """Axes of the input that stay free, with the names they get in the file."""
    batch = {0: "batch"} if dynamic_batch else {}
    return {**batch, 2: "height", 3: "width"} if dynamic_size else batch


def _require_exporter() -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "exporting to ONNX", package="onnxscript", extra="train"
        ) from error


def _try_model(model: nn.Module, example: torch.Tensor) -> list[torch.Tensor]:
    """The model's outputs as a list; a model that cannot run at this size is bad input."""
    try:
        with torch.no_grad():
            outputs = model(example)
    except Exception as error:  # whatever the user's forward may raise
        raise ExportError(
            f"the model does not run on images {tuple(example.shape)}: {reason_of(error)}",
            hint="give the input size the model was made for",
        ) from error
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    if not all(isinstance(output, torch.Tensor) for output in outputs):
        kinds = ", ".join(type(output).__name__ for output in outputs)
        raise ExportError(
            f"the model returns {kinds}; one tensor or a list of tensors can be exported",
            hint="wrap it in a module whose forward returns tensors only",
        )
    return outputs


def _output_names(model: nn.Module, outputs: Sequence[torch.Tensor], *, height: int) -> list[str]:
    if len(outputs) > 1:
        strides = [f"stride{round(height / o.shape[2])}" if o.ndim == 4 else "" for o in outputs]
        unique = all(strides) and len(set(strides)) == len(strides)
        return strides if unique else [f"output{i}" for i in range(len(outputs))]
    if outputs[0].ndim != 2:
        return ["output"]
    # timm sets num_classes to 0 where the classifier was taken off.
    return ["embedding" if getattr(model, "num_classes", None) == 0 else "logits"]


def _convert(
    model: nn.Module, example: torch.Tensor, free: Mapping[int, str], *, output_names: list[str]
) -> onnx.ModelProto:
    # A named Dim is rejected where the network constrains it (to a multiple of 32, for example).
    shapes = dict.fromkeys(free, torch.export.Dim.DYNAMIC) or None
    try:
        with quiet("exporter"):
            program = torch.export.export(model, (example,), dynamic_shapes=(shapes,), strict=False)
            in_onnx_operators(program)
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=_TRACED_OPSET,
                input_names=[INPUT_NAME],
                output_names=output_names,
                verbose=False,
            )
    except Exception as error:  # torch.export and its ONNX layer raise many unrelated types
        raise _conversion_error(error) from error
    assert exported is not None
    return exported.model_proto


def _conversion_error(error: Exception) -> ConversionFailed:
    cause: BaseException = error
    while cause.__cause__ is not None:  # the exporter wraps the reason in several layers
        cause = cause.__cause__
    return ConversionFailed(
        f"the model cannot be expressed in ONNX: {reason_of(cause)}",
        hint="replace the operation named above by plain tensor operations; if the batch axis is "
        "the cause, export with a fixed batch",
    )


def _finish(model: onnx.ModelProto, free: Mapping[int, str], metadata: Mapping[str, str]) -> None:
    name_after_modules(model)
    _strip_traces(model)
    blocked = lower_to_opset17(model)
    if blocked:
        log.warning(
            "kept opset %d: %s has no opset %d form; TensorRT before 10 may refuse the file",
            _TRACED_OPSET, ", ".join(blocked), OPSET,
        )  # fmt: skip
    _name_free_axes(model, free)
    onnx.helper.set_model_props(model, {str(key): str(text) for key, text in metadata.items()})


def _strip_traces(model: onnx.ModelProto) -> None:
    """Remove PyTorch's stack traces: they contain local paths and double the file size."""
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    model.graph.doc_string = model.doc_string = ""
    entries = (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info)
    for entry in (*entries, *model.graph.initializer):
        del entry.metadata_props[:]
        entry.doc_string = ""


def _name_free_axes(model: onnx.ModelProto, free: Mapping[int, str]) -> None:
    axes = model.graph.input[0].type.tensor_type.shape.dim
    names = {axes[axis].dim_param: name for axis, name in free.items()}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in names:
                axis.dim_param = names[axis.dim_param]


def _save(model: onnx.ModelProto, path: Path) -> None:
    if model.ByteSize() > _ONE_FILE_LIMIT:
        gib = model.ByteSize() / 2**30
        raise ExportError(
            f"the network is {gib:.1f} GiB, and one ONNX file holds at most 2 GiB",
            hint="networks of this size are not supported",
        )
    path.write_bytes(model.SerializeToString())
