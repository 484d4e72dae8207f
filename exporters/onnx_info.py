"""Reading ONNX files without torch: inputs, outputs and metadata."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ExportError, reason_of
from .network_files import (
    external_files,
    network_digest,
    network_size,
    require_usual_size,
)

if TYPE_CHECKING:
    import onnx

IMAGE_TYPES = ("float32", "float16", "uint8")
# TensorProto.COMPLEX128; BFLOAT16 and the 8-bit and 4-bit types come after it.
_LAST_PLAIN_TYPE = 15

__all__ = [
    "OnnxInfo",
    "TensorInfo",
    "metadata_of",
    "onnx_info",
    "read_onnx",
    "require_image_input",
]


@dataclass(frozen=True)
class TensorInfo:
    """One input or output; a free axis is given by its name, as `"batch"`."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True)
class OnnxInfo:
    """What an ONNX file holds. `precision` is `int8` (Q/DQ nodes), `fp16` or `fp32`.

    `sha256` and `size_bytes` are those of the whole network, weights in other files included;
    `opset` is None where the graph uses none of ONNX's own operators. `asymmetric`: it quantizes to
    uint8, as INT8 flavor `cpu` does and as TensorRT refuses.
    """

    path: str
    sha256: str
    size_bytes: int
    opset: int | None
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    precision: str
    asymmetric: bool
    metadata: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def read_onnx(path: str | Path) -> onnx.ModelProto:
    """Load an ONNX file and check it with `onnx.checker`.

    Raises:
        ExportError: No such file, or not a valid ONNX model.
    """
    model = _load(Path(path))
    _check(Path(path), model)
    return model


def _load(path: Path) -> onnx.ModelProto:
    import onnx

    if not path.is_file():
        raise ExportError(f"no ONNX file at '{path}'", hint="check the path, or export one first")
    require_usual_size(path)
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
        if external_files(path, model):
            onnx.load_external_data_for_model(model, str(path.parent))
    except ExportError:
        raise
    except Exception as error:  # protobuf's and the system's errors share no base class
        raise _invalid(path, error) from error
    return model


def _check(path: Path, model: onnx.ModelProto) -> None:
    import onnx

    try:
        onnx.checker.check_model(model)
    except Exception as error:  # the checker's and the system's errors share no base class
        raise _invalid(path, error) from error


def _invalid(path: Path, error: Exception) -> ExportError:
    return ExportError(
        f"'{path}' is not a valid ONNX model: {reason_of(error)}",
        hint="the file is damaged or not an ONNX file; export it again",
    )


def onnx_info(path: str | Path) -> OnnxInfo:
    """Describe an ONNX file.

    Raises:
        ExportError: No such file, or not a valid ONNX model.
    """
    path = Path(path)
    model = _load(path)
    try:
        info = _described(path, model)
    except _Unusable as error:
        raise ExportError(
            f"'{path}': {error}",
            hint="export the model with plain tensors of a numpy type as inputs and outputs",
        ) from error
    _check(path, model)
    return info


def require_image_input(path: str | Path, info: OnnxInfo) -> TensorInfo:
    """The only input of a network that takes a batch of images.

    Raises:
        ExportError: It has another number of inputs, or its input is not a batch of images.
    """
    hint = "name a model that takes one batch of images: [batch, channels, height, width]"
    if len(info.inputs) != 1:
        names = ", ".join(f"'{one.name}'" for one in info.inputs) or "none"
        raise ExportError(f"'{path}': one input is expected, it has {names}", hint=hint)
    [taken] = info.inputs
    if len(taken.shape) != 4 or taken.dtype not in IMAGE_TYPES:
        raise ExportError(
            f"'{path}': input '{taken.name}' is {taken.dtype}{list(taken.shape)}, no images",
            hint=hint,
        )
    return taken


def _described(path: Path, model: onnx.ModelProto) -> OnnxInfo:
    return OnnxInfo(
        path=str(path),
        sha256=network_digest(path),
        size_bytes=network_size(path),
        opset=_opset(model),
        inputs=graph_inputs(model),
        outputs=graph_outputs(model),
        precision=graph_precision(model),
        asymmetric=_is_asymmetric(model),
        metadata=metadata_of(model),
    )


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """The entries that a file's writer left in it."""
    return {entry.key: entry.value for entry in model.metadata_props}


def graph_inputs(model: onnx.ModelProto) -> tuple[TensorInfo, ...]:
    """The inputs a caller has to feed; old files list their weights among the inputs too."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    return tuple(_tensor(value, "input") for value in inputs)


def graph_outputs(model: onnx.ModelProto) -> tuple[TensorInfo, ...]:
    """The outputs of a network, in order."""
    return tuple(_tensor(value, "output") for value in model.graph.output)


def exposed(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of a model that also returns tensors inside its graph."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {output.name for output in model.graph.output}
    added = [name for name in dict.fromkeys(names) if name and name not in present]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in added)
    return copy


def graph_precision(model: onnx.ModelProto) -> str:
    """`int8` when the graph quantizes, `fp16` when any weight is half precision, else `fp32`."""
    import onnx

    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return "int8"
    half = onnx.TensorProto.FLOAT16
    return "fp16" if any(w.data_type == half for w in model.graph.initializer) else "fp32"


def _is_asymmetric(model: onnx.ModelProto) -> bool:
    import onnx

    uint8 = onnx.TensorProto.UINT8
    numbers = {tensor.name for tensor in model.graph.initializer if tensor.data_type == uint8}
    return any(
        node.op_type == "QuantizeLinear" and numbers & {*node.input[2:]}
        for node in model.graph.node
    )


class _Unusable(Exception):
    """Reject an input or output that numpy cannot represent; the error names it."""


def _tensor(value: onnx.ValueInfoProto, role: str) -> TensorInfo:
    kind = value.type.tensor_type
    form = value.type.WhichOneof("value")
    if form != "tensor_type":
        what = (form or "unknown").removesuffix("_type").replace("_", " ")
        raise _Unusable(f"{role} '{value.name}' is of type '{what}', which is not a tensor")
    if role == "input" and not kind.HasField("shape"):
        raise _Unusable(f"input '{value.name}' has no stated number of axes")
    if role == "input" and any(
        axis.HasField("dim_value") and axis.dim_value == 0 for axis in kind.shape.dim
    ):
        raise _Unusable(f"input '{value.name}' has an axis of size 0, so it takes no values")
    shape = tuple(axis.dim_param or int(axis.dim_value) for axis in kind.shape.dim)
    return TensorInfo(value.name, shape, _dtype(kind.elem_type, f"{role} '{value.name}'"))


def _dtype(number: int, where: str) -> str:
    """The numpy type of a tensor; types that numpy does not have cannot be fed or read."""
    import onnx

    names = {value: name for name, value in onnx.TensorProto.DataType.items()}
    name = names.get(number, f"number {number}").lower()
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(number)
    except KeyError as error:
        raise _Unusable(
            f"{where} holds values of type {name}, which numpy does not have"
        ) from error
    # `bfloat16` and the like: an extension of numpy, or (older onnx) a wider type in its place.
    if dtype.isbuiltin != 1 or dtype.kind not in "biufc" or number > _LAST_PLAIN_TYPE:
        raise _Unusable(f"{where} holds values of type {name}, which numpy does not have")
    return str(dtype)


def _opset(model: onnx.ModelProto) -> int | None:
    versions = [one.version for one in model.opset_import if one.domain in ("", "ai.onnx")]
    return versions[0] if versions else None
