"""fp32 ONNX -> fp16 ONNX, as a typed graph: a tensor's type is the precision it is computed in.

A typed graph needs no builder flag, and is the only way since TensorRT 11. Inputs and outputs stay
f32, so callers do not change. Values beyond 65504 become infinite in half precision: nodes that
come near that limit on real images are kept in fp32.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._graph import module_of, sort_nodes
from ._intermediates import intermediate_values
from .atomic_files import file_sha256, new_artifact
from .errors import ConversionFailed, ExportError, reason_of
from .onnx_info import graph_inputs, graph_precision, metadata_of, read_onnx
from .runtimes.ort import OrtSession

if TYPE_CHECKING:
    import onnx

__all__ = ["HalfExport", "convert_fp16", "nodes_of_modules", "overflowing_nodes"]

log = logging.getLogger(__name__)

# The largest half is 65504; other images may reach higher values than these.
_SAFE = 65504 / 4


@dataclass(frozen=True)
class HalfExport:
    """An fp16 ONNX file; `kept_fp32` lists the nodes left in full precision."""

    path: Path
    sha256: str
    size_bytes: int
    kept_fp32: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "path": str(self.path)}


def convert_fp16(
    onnx_path: str | Path,
    path: str | Path,
    *,
    images: np.ndarray | None = None,
    keep_fp32: Sequence[str] = (),
) -> HalfExport:
    """Convert weights and computation to half precision.

    Args:
        onnx_path: An fp32 ONNX file.
        path: Where to write the fp16 file.
        images: f32[N, 3, H, W] real images; nodes whose values overflow on them are kept in fp32.
        keep_fp32: Modules (`layer4.1`) or nodes (`fc/Gemm`) to keep in fp32 as well.

    Raises:
        ExportError: Bad input, a name in `keep_fp32` that is not in the file, unwritable path.
        ConversionFailed: The graph cannot be converted.
    """
    import onnx
    from onnxruntime.transformers import float16

    model = read_onnx(onnx_path)
    if graph_precision(model) != "fp32":
        raise ExportError(
            f"'{onnx_path}' is {graph_precision(model)} already", hint="convert the fp32 file"
        )
    kept = set(nodes_of_modules(model, keep_fp32))
    if images is not None:
        kept |= set(overflowing_nodes(model, images))
    metadata = metadata_of(model)
    try:
        half = float16.convert_float_to_float16(
            model, keep_io_types=True, node_block_list=sorted(kept)
        )
    except Exception as error:  # the converter raises many exception types
        raise ConversionFailed(
            f"'{onnx_path}' cannot be converted to fp16: {reason_of(error)}",
            hint="name the layer in keep_fp32",
        ) from error
    _drop_repeated_casts(half.graph)
    _bypass_half_between_kept_nodes(half.graph)
    sort_nodes(half.graph)  # the converter appends its casts at the end
    onnx.helper.set_model_props(half, metadata)
    with new_artifact(path) as temporary:
        temporary.write_bytes(half.SerializeToString())
        read_onnx(temporary)
        OrtSession(temporary)
        return HalfExport(
            Path(path), file_sha256(temporary), temporary.stat().st_size, tuple(sorted(kept))
        )


def overflowing_nodes(
    model: onnx.ModelProto, images: np.ndarray, *, batch_size: int = 4
) -> list[str]:
    """Nodes that read or write values too large for half precision on these images."""
    large: set[str] = set()
    batch = graph_inputs(model)[0].shape[0]
    step = batch if isinstance(batch, int) else batch_size
    for start in range(0, len(images), step):
        values = intermediate_values(model, images[start : start + step])
        large |= {name for name, v in values.items() if np.abs(v).max(initial=0.0) > _SAFE}
    nodes = [
        node.name for node in model.graph.node if large & ({*node.input} | {*node.output})
    ]  # fmt: skip
    if nodes:
        log.warning("kept in fp32, because values there are too large for fp16: %s", nodes)
    return nodes


def nodes_of_modules(model: onnx.ModelProto, names: Sequence[str]) -> list[str]:
    """Names of the nodes inside these modules; a node's own name matches that node.

    Raises:
        ExportError: A name that matches nothing.
    """
    found: list[str] = []
    for name in names:
        inside = [
            node.name
            for node in model.graph.node
            if node.name == name or f"{module_of(node.name)}.".startswith(f"{name}.")
        ]
        if not inside:
            some = ", ".join(module_of(node.name) for node in list(model.graph.node)[:3])
            raise ExportError(f"no layer '{name}' in the network", hint=f"names are like {some}")
        found += inside
    return found


def _drop_repeated_casts(graph: onnx.GraphProto) -> None:
    """A tensor read by several kept nodes gets one cast per reader, all under the same name."""
    made: set[str] = set()
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "Cast" or node.output[0] not in made:
            kept.append(type(node).FromString(node.SerializeToString()))
        made.update(node.output)
    del graph.node[:]
    graph.node.extend(kept)


def _bypass_half_between_kept_nodes(graph: onnx.GraphProto) -> None:
    """Two kept nodes in a row exchange fp32: a cast to fp16 between them would overflow."""
    import onnx

    casts = [node for node in graph.node if node.op_type == "Cast"]
    to = {node.output[0]: onnx.helper.get_node_attr_value(node, "to") for node in casts}
    source = {node.output[0]: node.input[0] for node in casts}
    for node in casts:
        to_single = to[node.output[0]] == onnx.TensorProto.FLOAT
        if to_single and to.get(node.input[0]) == onnx.TensorProto.FLOAT16:
            node.input[0] = source[node.input[0]]
