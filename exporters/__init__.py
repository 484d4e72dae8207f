"""nn.Module -> ONNX -> TensorRT / OpenVINO, each step verified. Imports nothing from hgkd_edge."""

from .errors import ConversionFailed, ExportError, MissingPackageError, VerificationFailed

__all__ = ["ConversionFailed", "ExportError", "MissingPackageError", "VerificationFailed"]
