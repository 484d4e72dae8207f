"""ONNX -> OpenVINO IR: `net.xml` (graph, metadata) beside `net.bin` (weights).

Weights are stored as fp16 unless told otherwise; in which precision they are computed with is the
device plugin's choice at run time. INT8 comes from an INT8 ONNX file (`exporters.quantize`, flavour
`cpu`): OpenVINO turns its Q/DQ nodes into its own fake-quantise form, and stores int8 weights.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ConversionFailed, ExportError, MissingPackageError
from .files import file_sha256, flush, require_writable_folder
from .network_files import require_usual_size
from .onnx_info import onnx_info
from .runners import Outputs, Runner, in_batches

if TYPE_CHECKING:
    import openvino

__all__ = [
    "OpenVinoExport",
    "export_openvino",
    "openvino_intermediates",
    "openvino_metadata",
    "openvino_runner",
    "require_openvino",
]


@dataclass(frozen=True)
class OpenVinoExport:
    """An IR that was written and compiled. `weights` is its .bin file."""

    path: Path
    weights: Path
    sha256: str
    weights_sha256: str
    size_bytes: int
    version: str
    precision: str

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path), "weights": str(self.weights)}


def require_openvino() -> None:
    """Raises MissingPackageError where OpenVINO is not installed."""
    try:
        import openvino  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "exporting to OpenVINO", package="openvino", extra="openvino"
        ) from error


def export_openvino(
    onnx_path: str | Path, path: str | Path, *, half_weights: bool = True
) -> OpenVinoExport:
    """Convert an fp32 or INT8 ONNX file.

    Args:
        onnx_path: The network; its metadata goes along, under `rt_info/hgkd_edge`.
        path: Where to write the .xml; the weights lie beside it.
        half_weights: Store float weights as fp16, half the size.

    Raises:
        ExportError: A corrupt ONNX file, or a path that cannot be written.
        MissingPackageError: OpenVINO is not installed.
        ConversionFailed: OpenVINO refuses the network.
    """
    require_openvino()
    import openvino

    path, source = Path(path), onnx_info(onnx_path)
    if path.suffix != ".xml":
        raise ExportError(f"an OpenVINO model is an .xml file, not '{path.name}'")
    require_writable_folder(path)
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}.", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        try:
            model = openvino.convert_model(str(onnx_path))
            for key, text in source.metadata.items():
                model.set_rt_info(text, ["hgkd_edge", key.removeprefix("hgkd_edge.")])
            openvino.save_model(model, temporary, compress_to_fp16=half_weights)
            _compile(temporary)
        except Exception as error:  # OpenVINO's own types have no common base
            raise ConversionFailed(
                f"OpenVINO cannot convert '{onnx_path}': {_reason(error)}",
                hint="the message names the node; replace that operator in the model",
            ) from error
        # The graph last: an .xml is there only when its weights are.
        for file in (temporary.with_suffix(".bin"), temporary):
            flush(file)
            os.replace(file, path.parent / file.name)
    weights = path.with_suffix(".bin")
    half = source.precision == "fp32" and half_weights
    return OpenVinoExport(
        path=path,
        weights=weights,
        sha256=file_sha256(path),
        weights_sha256=file_sha256(weights),
        size_bytes=path.stat().st_size + weights.stat().st_size,
        version=str(openvino.__version__).split("-")[0],
        precision="fp16" if half else source.precision,
    )


def openvino_metadata(path: str | Path) -> dict[str, str]:
    """What the ONNX file said of itself, as its IR keeps it."""
    require_openvino()
    import openvino

    model = openvino.Core().read_model(str(path))
    if not model.has_rt_info("hgkd_edge"):
        return {}
    entries = model.get_rt_info("hgkd_edge").astype(dict)
    return {f"hgkd_edge.{key}": entry.astype(str) for key, entry in entries.items()}


def openvino_runner(path: str | Path) -> Runner:
    """Run an IR on the CPU, computing in fp32: the file is judged, not a plugin's default.

    Raises:
        MissingPackageError: OpenVINO is not installed.
        ConversionFailed: OpenVINO refuses the file.
    """
    require_openvino()
    require_usual_size(path)
    try:
        compiled = _compile(path)
    except Exception as error:  # as above
        raise ConversionFailed(f"OpenVINO cannot load '{path}': {_reason(error)}") from error
    (feed,) = compiled.inputs
    dtype = feed.get_element_type().to_dtype()

    def run(images: np.ndarray) -> Outputs:
        results = compiled([images.astype(dtype, copy=False)])
        return {
            output.any_name: np.array(results[output], np.float32) for output in compiled.outputs
        }

    batch = feed.get_partial_shape()[0]
    return in_batches(run, batch.get_length() if batch.is_static else None)


def openvino_intermediates(path: str | Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """Values of the tensors inside an IR, by the names they had in the ONNX file.

    Args:
        path: The .xml file.
        images: [B, 3, H, W], cast to the type of the network's input.
    """
    import openvino

    model = openvino.Core().read_model(str(path))
    present = {name for output in model.outputs for name in output.names}
    inner = [
        port
        for node in model.get_ordered_ops()
        if node.get_type_name() not in ("Constant", "Parameter", "Result")
        for port in node.outputs()
        if port.names and not port.names & present
    ]
    model.add_outputs(inner)
    compiled = _compile(model)
    dtype = compiled.inputs[0].get_element_type().to_dtype()
    results = compiled([images.astype(dtype, copy=False)])
    return {
        name: np.array(results[output], np.float32)
        for output in compiled.outputs
        for name in output.names
    }


def _compile(source: str | Path | openvino.Model) -> Any:
    import openvino

    model = str(source) if isinstance(source, (str, Path)) else source
    return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def _reason(error: Exception) -> str:
    """OpenVINO begins its messages with lines of its own source; the reason comes last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
