"""nn.Module -> ONNX -> TensorRT / OpenVINO, each step verified. Imports nothing from hgkd_edge."""

from .errors import (
    ConversionFailed,
    ExportError,
    MissingPackageError,
    UserError,
    VerificationFailed,
)
from .telemetry import forbid_telemetry

__all__ = [
    "ConversionFailed",
    "ExportError",
    "MissingPackageError",
    "UserError",
    "VerificationFailed",
]

forbid_telemetry()
