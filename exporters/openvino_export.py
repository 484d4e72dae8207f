"""ONNX -> OpenVINO IR: `net.xml` (graph, metadata) next to `net.bin` (weights).

Weights are stored as fp16 by default; the device plugin chooses the compute precision at run time.
INT8 comes from an INT8 ONNX file (`exporters.quantize`, flavor `cpu`): OpenVINO turns its Q/DQ
nodes into its own fake-quantize form, and stores int8 weights.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .atomic_files import file_sha256, flush, hidden_folder, require_writable_folder
from .errors import ConversionFailed, ExportError
from .onnx_info import onnx_info
from .runtimes.openvino import OpenVinoSession, last_line, require_openvino

__all__ = ["OpenVinoExport", "export_openvino", "openvino_intermediates"]


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
        """Plain data, for JSON."""
        return {**asdict(self), "path": str(self.path), "weights": str(self.weights)}


def export_openvino(
    onnx_path: str | Path, path: str | Path, *, half_weights: bool = True
) -> OpenVinoExport:
    """Convert an fp32 or INT8 ONNX file.

    Args:
        onnx_path: The network; OpenVINO keeps its metadata, under `rt_info/framework`.
        path: Where to write the .xml; the weights lie next to it.
        half_weights: Store float weights as fp16, half the size.

    Raises:
        ExportError: A corrupt ONNX file, or a path that cannot be written.
        MissingPackageError: OpenVINO is not installed.
        ConversionFailed: OpenVINO refuses the network.
    """
    require_openvino("exporting to OpenVINO")
    import openvino

    path, source = Path(path), onnx_info(onnx_path)
    if path.suffix != ".xml":
        raise ExportError(f"an OpenVINO model is an .xml file, not '{path.name}'")
    require_writable_folder(path)
    with hidden_folder(path.parent) as folder:
        temporary = folder / path.name
        try:
            model = openvino.convert_model(str(onnx_path))
            openvino.save_model(model, temporary, compress_to_fp16=half_weights)
            OpenVinoSession(temporary)
        except Exception as error:  # OpenVINO's own types have no common base
            raise ConversionFailed(
                f"OpenVINO cannot convert '{onnx_path}': {last_line(error.__cause__ or error)}",
                hint="the message names the node; replace that operator in the model",
            ) from error
        # The graph is moved last: an .xml exists only when its weights do.
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
    results = OpenVinoSession(model).run(images)
    return {
        name: value
        for key, value in results.items()
        for output in model.outputs
        if key in output.names
        for name in output.names
    }
