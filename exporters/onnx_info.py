"""Reading ONNX files without torch: what goes in, what comes out, what the file says of itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConversionFailed, ExportError
from .files import digest

if TYPE_CHECKING:
    import onnx
    import onnxruntime

__all__ = ["OnnxInfo", "TensorInfo", "onnx_info", "open_session", "read_onnx"]


@dataclass(frozen=True)
class TensorInfo:
    """One input or output; a free axis is given by its name, as `"batch"`."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True)
class OnnxInfo:
    """What an ONNX file holds. `precision` is `int8` (Q/DQ nodes), `fp16` or `fp32`."""

    path: str
    sha256: str
    size_bytes: int
    opset: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    precision: str
    metadata: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_onnx(path: str | Path) -> onnx.ModelProto:
    """Load an ONNX file and check it with `onnx.checker`.

    Raises:
        ExportError: No such file, or not a valid ONNX model.
    """
    import onnx

    path = Path(path)
    if not path.is_file():
        raise ExportError(f"no ONNX file at '{path}'", hint="check the path, or export one first")
    try:
        model = onnx.load(path, format="protobuf")
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf, checker and file errors share no base class
        raise ExportError(
            f"'{path}' is not a valid ONNX model: {first_line(error)}",
            hint="the file is damaged or not an ONNX file; export it again",
        ) from error
    return model


def onnx_info(path: str | Path) -> OnnxInfo:
    """Describe an ONNX file.

    Raises:
        ExportError: No such file, or not a valid ONNX model.
    """
    model = read_onnx(path)
    return OnnxInfo(
        path=str(path),
        sha256=digest(path),
        size_bytes=Path(path).stat().st_size,
        opset=next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
        inputs=graph_inputs(model),
        outputs=tuple(_tensor(value) for value in model.graph.output),
        precision=graph_precision(model),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def graph_inputs(model: onnx.ModelProto) -> tuple[TensorInfo, ...]:
    """The inputs a caller has to feed; old files list their weights among the inputs too."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return tuple(_tensor(value) for value in model.graph.input if value.name not in weights)


def graph_precision(model: onnx.ModelProto) -> str:
    """`int8` when the graph quantises, `fp16` when any weight is half precision, else `fp32`."""
    import onnx

    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return "int8"
    half = onnx.TensorProto.FLOAT16
    return "fp16" if any(w.data_type == half for w in model.graph.initializer) else "fp32"


def open_session(
    source: str | Path | bytes, *, threads: int | None = None, optimise: bool = True
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU.

    Args:
        source: Path or bytes of an ONNX model.
        threads: Threads inside an operator; None leaves the choice to ONNX Runtime.
        optimise: False runs the graph node by node as written, for looking at intermediate values.

    Raises:
        ConversionFailed: ONNX Runtime refuses the model (an operator it does not have, say).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = source if isinstance(source, bytes) else str(source)
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a family of C++ exceptions without a base
        name = "the model" if isinstance(source, bytes) else f"'{source}'"
        raise ConversionFailed(
            f"ONNX Runtime cannot load {name}: {first_line(error)}",
            hint="the message names the node; replace that operator in the model, "
            "or use a newer onnxruntime",
        ) from error


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's text, without a tail of context."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def _tensor(value: onnx.ValueInfoProto) -> TensorInfo:
    import onnx

    kind = value.type.tensor_type
    shape = tuple(axis.dim_param or int(axis.dim_value) for axis in kind.shape.dim)
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return TensorInfo(value.name, shape, dtype)
