"""Put pre- and post-processing inside an ONNX file, so that a device needs neither.

    frames u8[B, H, W, 3] -> resize, normalize -> network
        -> softmax | sigmoid | argmax | boxes after NMS

Processing is added after the precision is chosen, so it stays in fp32 around an fp16 or INT8
network.

Resizing is bilinear and antialiased, as matrix products (`resize_matrix.py`). It is not rounded to
whole gray levels in between, so pixels differ from Pillow's by up to one gray level (of 255).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._processing import (
    FRAMES,
    POSTPROCESSING,
    Candidates,
    Preprocessing,
    Suppression,
    postprocessing_constants,
    postprocessing_graph,
    preprocessing_constants,
    preprocessing_graph,
)
from .atomic_files import new_artifact
from .errors import ConversionFailed, ExportError, reason_of
from .onnx_info import (
    OnnxInfo,
    TensorInfo,
    graph_inputs,
    graph_outputs,
    metadata_of,
    onnx_info,
    read_onnx,
)
from .runtimes.ort import OrtSession

if TYPE_CHECKING:
    import onnx

__all__ = [
    "FRAMES",
    "POSTPROCESSING",
    "BakedExport",
    "Candidates",
    "Preprocessing",
    "Suppression",
    "bake",
]


@dataclass(frozen=True)
class BakedExport:
    """An ONNX file that takes frames, or returns decisions, or both."""

    path: Path
    sha256: str
    size_bytes: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "path": str(self.path)}


def bake(
    onnx_path: str | Path,
    path: str | Path,
    *,
    preprocessing: Preprocessing | None = None,
    postprocessing: str | Suppression | Candidates | None = None,
    prefix: str | None = None,
) -> BakedExport:
    """Write a copy of a network with processing around it.

    Args:
        onnx_path: A network with one input f32[B, 3, H, W] of fixed size; any precision.
        path: Where to write.
        preprocessing: Take `frames` u8[B, H, W, 3] (RGB) instead, or their planes.
        postprocessing: `softmax`, `sigmoid`, `pixel-softmax`, `argmax`, the rule that boxes are
            suppressed by, or which boxes another program suppresses; None leaves the outputs as
            they are.
        prefix: Start of the metadata keys `baked` (the ends with processing, JSON) and `frame`
            (height and width, where fixed); None writes neither.

    Raises:
        ExportError: The network has a different input, or lacks the outputs to process.
        ConversionFailed: The joined graph does not run.
    """
    import onnx

    model = read_onnx(onnx_path)
    metadata = metadata_of(model)
    if preprocessing is not None:
        _put_before(model, preprocessing)
    if postprocessing is not None:
        _put_behind(model, postprocessing)
    if prefix is not None:
        ends = {"preprocessing": preprocessing, "postprocessing": postprocessing}
        inside = [end for end, given in ends.items() if given is not None]
        metadata[f"{prefix}baked"] = json.dumps(inside)
        if preprocessing is not None and preprocessing.frame is not None:
            metadata[f"{prefix}frame"] = json.dumps(preprocessing.frame)
    onnx.helper.set_model_props(model, metadata)
    with new_artifact(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
        info = onnx_info(temporary)
        _try(temporary, info)
        return BakedExport(Path(path), info.sha256, info.size_bytes, info.inputs, info.outputs)


def _put_before(model: onnx.ModelProto, preprocessing: Preprocessing) -> None:
    import onnx

    (image,) = graph_inputs(model)
    if image.dtype != "float32" or not all(isinstance(side, int) for side in image.shape[1:]):
        raise ExportError(
            f"preprocessing needs a network of fixed image size, '{image.name}' is "
            f"{image.dtype}{list(image.shape)}",
            hint="export without --dynamic-size",
        )
    before = onnx.parser.parse_graph(preprocessing_graph(image, preprocessing))
    _add_constants(before, preprocessing_constants(image, preprocessing))
    _name_nodes(before, "preprocessing")
    graph = model.graph
    graph.value_info.extend(value for value in graph.input if value.name == image.name)
    graph.initializer.extend(before.initializer)
    for target, source in ((graph.input, before.input), (graph.node, [*before.node, *graph.node])):
        copies = [type(entry).FromString(entry.SerializeToString()) for entry in source]
        del target[:]
        target.extend(copies)


def _put_behind(model: onnx.ModelProto, wanted: str | Suppression | Candidates) -> None:
    import onnx

    name = wanted if isinstance(wanted, str) else wanted.graph
    if name not in POSTPROCESSING:
        known = ", ".join(POSTPROCESSING)
        raise ExportError(f"unknown postprocessing '{name}'", hint=f"one of {known}")
    outputs = {output.name: output for output in graph_outputs(model)}
    after = onnx.parser.parse_graph(postprocessing_graph(name, outputs))
    needed = {value.name for value in after.input}
    kept = [output for output in model.graph.output if output.name not in needed]
    if len(kept) + len(needed) != len(model.graph.output):
        found = ", ".join(output.name for output in model.graph.output)
        raise ExportError(f"{name} needs the output {' and '.join(sorted(needed))}; here: {found}")
    _name_nodes(after, "postprocessing")
    model.graph.node.extend(after.node)
    model.graph.initializer.extend(after.initializer)
    sizes: dict[str, int | str] = {}
    if not isinstance(wanted, str):
        constants = postprocessing_constants(outputs["scores"], wanted)
        _add_constants(model.graph, constants)
        if "post_candidates" in constants:
            sizes = {"N": int(constants["post_candidates"][0])}
    _state_sizes(after, outputs, sizes)
    ends = [type(o).FromString(o.SerializeToString()) for o in (*kept, *after.output)]
    del model.graph.output[:]
    model.graph.output.extend(ends)


def _state_sizes(
    after: onnx.GraphProto, outputs: Mapping[str, TensorInfo], sizes: dict[str, int | str]
) -> None:
    """Write sizes in place of the letters in the shapes of a graph's outputs.

    Args:
        after: Takes outputs of the network.
        outputs: The network's outputs, by name.
        sizes: Sizes for letters that its inputs do not have.
    """
    for value in after.input:
        axes = value.type.tensor_type.shape.dim
        for axis, size in zip(axes, outputs[value.name].shape, strict=False):
            sizes[axis.dim_param] = size
    for value in after.output:
        for axis in value.type.tensor_type.shape.dim:
            size = sizes.get(axis.dim_param, axis.dim_param)
            if isinstance(size, int):
                axis.dim_value = size
            else:
                axis.dim_param = size


def _add_constants(graph: onnx.GraphProto, constants: Mapping[str, np.ndarray]) -> None:
    import onnx

    graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in constants.items()
    )


def _name_nodes(graph: onnx.GraphProto, part: str) -> None:
    for index, node in enumerate(graph.node):
        node.name = f"{part}/{node.op_type}_{index}"


def _try(path: Path, info: OnnxInfo) -> None:
    """Run the file once on gray frames: joined graphs that do not match fail here."""
    (feed,) = info.inputs
    shape = [side if isinstance(side, int) else (1 if axis == 0 else 96)
             for axis, side in enumerate(feed.shape)]  # fmt: skip
    try:
        OrtSession(path).infer({feed.name: np.full(shape, 127, feed.dtype)})
    except ConversionFailed:
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base
        reason = reason_of(error.__cause__ or error)
        raise ConversionFailed(f"the baked network does not run: {reason}") from error
