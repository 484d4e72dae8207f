"""nn.Module -> ONNX -> TensorRT / OpenVINO, each step verified. Imports nothing from hgkd_edge."""

from .errors import (
    ConversionFailed,
    ExportError,
    MissingPackageError,
    UserError,
    VerificationFailed,
)

__all__ = [
    "ConversionFailed",
    "ExportError",
    "MissingPackageError",
    "UserError",
    "VerificationFailed",
]
