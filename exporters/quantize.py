"""fp32 ONNX -> INT8 ONNX with explicit Q/DQ nodes, from real images, in two flavors.

    tensorrt   NVIDIA's rules for explicit quantization: symmetric int8 activations and
               per-channel int8 weights at the *inputs* of convolutions and matrix products, float
               biases, and a residual sum whose skip branch is quantized with the same scale as the
               layer next to it, so that TensorRT fuses convolution + sum + activation.
    cpu        What ONNX Runtime and OpenVINO run fast on x86: asymmetric uint8 activations,
               per-channel int8 weights, int32 biases, quantized from layer to layer (see
               `_cpu_int8` for what stays in float).

In both, a classifier's last layer stays in float: it is a small part of the arithmetic, and
rounding its input, the mean over the image, was 39 % of the error of two networks
(docs/lab-notebook.md).

Ranges come from ONNX Runtime's calibrators and Q/DQ nodes from its quantizer; the residual rule is
this module's. INT8 needs real images.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._cpu_int8 import float_arithmetic, pool_as_operator
from ._graph import WEIGHTED, sort_nodes
from ._residual import share_residual_scales
from .atomic_files import file_sha256, new_artifact
from .calibrate import Calibration, calibrate
from .choices import FLAVORS
from .errors import ConversionFailed, ExportError, reason_of
from .fp16 import nodes_of_modules
from .onnx_info import graph_precision, metadata_of, read_onnx
from .runtimes.ort import OrtSession

if TYPE_CHECKING:
    import onnx

__all__ = ["Int8Export", "quantizable_nodes", "quantize_int8", "quantized_graph"]

log = logging.getLogger(__name__)

FEW_IMAGES = 100
# Operators that ONNX Runtime has fast integer kernels for. Others stay float between them.
_CPU_OPERATORS = [*WEIGHTED, "Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool"]
_CPU_OPERATORS += ["MaxPool", "Mul", "Relu", "Resize"]


@dataclass(frozen=True)
class Int8Export:
    """An INT8 ONNX file. `kept_float` lists the nodes kept unquantized on purpose."""

    path: Path
    sha256: str
    size_bytes: int
    flavor: str
    method: str
    calibration_images: int
    quantized: int
    kept_float: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "path": str(self.path)}


def quantize_int8(
    onnx_path: str | Path,
    path: str | Path,
    *,
    images: np.ndarray | None = None,
    calibration: Calibration | None = None,
    flavor: str = "tensorrt",
    method: str = "percentile",
    keep_float: Sequence[str] = (),
) -> Int8Export:
    """Quantize a network to INT8.

    Args:
        onnx_path: An fp32 ONNX file.
        path: Where to write the INT8 file.
        images: f32[N, 3, H, W] real calibration images, preprocessed as in use.
        calibration: Ranges from `calibrate`, instead of images; saves calibrating for each flavor.
        flavor: `tensorrt` or `cpu`.
        method: How ranges are chosen, see `calibrate`.
        keep_float: Modules (`layer4.1`) or nodes (`fc/Gemm`) to keep unquantized.

    Raises:
        ExportError: No images, a name that is not in the network, a path that cannot be written.
        ConversionFailed: The quantizer or the runtime refuses the network.
    """
    model = read_onnx(onnx_path)
    if graph_precision(model) != "fp32":
        raise ExportError(
            f"'{onnx_path}' is {graph_precision(model)} already", hint="quantize the fp32 file"
        )
    if calibration is None:
        calibration = calibrate(model, _given(images), method=method)
    if calibration.images < FEW_IMAGES:
        log.warning(
            "calibrated on %d images; with fewer than %d, INT8 accuracy is unreliable",
            calibration.images,
            FEW_IMAGES,
        )
    kept = sorted({*nodes_of_modules(model, keep_float), *_classifier(model)})
    graph = quantized_graph(model, calibration, flavor=flavor, exclude=kept)
    with new_artifact(path) as temporary:
        temporary.write_bytes(graph.SerializeToString())
        read_onnx(temporary)
        OrtSession(temporary)
        return Int8Export(
            path=Path(path),
            sha256=file_sha256(temporary),
            size_bytes=temporary.stat().st_size,
            flavor=flavor,
            method=calibration.method,
            calibration_images=calibration.images,
            quantized=len(set(quantizable_nodes(model)) - set(kept)),
            kept_float=tuple(kept),
        )


def quantizable_nodes(model: onnx.ModelProto) -> list[str]:
    """The nodes with weights that quantization is about, in the order they run."""
    weights = {tensor.name for tensor in model.graph.initializer}
    left = set(_classifier(model))
    return [
        node.name
        for node in model.graph.node
        if node.op_type in WEIGHTED and node.input[1] in weights and node.name not in left
    ]


def _classifier(model: onnx.ModelProto) -> list[str]:
    """The matrix products whose result is an output of the network."""
    outputs = {value.name for value in model.graph.output}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in ("Gemm", "MatMul") and node.output[0] in outputs
    ]


def quantized_graph(
    model: onnx.ModelProto,
    calibration: Calibration,
    *,
    flavor: str,
    exclude: Sequence[str] = (),
    only: Sequence[str] = (),
) -> onnx.ModelProto:
    """Insert Q/DQ nodes; `model` is not changed.

    Args:
        model: fp32 model.
        calibration: Its ranges.
        flavor: `tensorrt` or `cpu`.
        exclude: Nodes to keep in float, in addition to a classifier's last layer.
        only: When given, nodes to quantize, and no others.
    """
    import onnx

    if flavor not in FLAVORS:
        raise ExportError(f"unknown INT8 flavor '{flavor}'", hint=f"one of {', '.join(FLAVORS)}")
    metadata = metadata_of(model)
    typed = onnx.shape_inference.infer_shapes(model, strict_mode=True)  # a copy
    quantize = _for_tensorrt if flavor == "tensorrt" else _for_cpu
    try:
        graph = quantize(typed, calibration, [*exclude, *_classifier(model)], list(only))
    except Exception as error:  # the quantizer raises plain Exceptions and KeyErrors
        raise ConversionFailed(
            f"the network cannot be quantized: {reason_of(error)}",
            hint="name the layer in keep_float",
        ) from error
    if flavor == "tensorrt" and not only:  # a layer quantized alone is measured alone
        share_residual_scales(graph, calibration)
    sort_nodes(graph.graph)
    onnx.helper.set_model_props(graph, metadata)
    return graph


def _for_tensorrt(
    model: onnx.ModelProto, calibration: Calibration, exclude: list[str], only: list[str]
) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType

    return _insert(
        model,
        calibration,
        exclude,
        only,
        activation=QuantType.QInt8,
        operators=list(WEIGHTED),
        options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            # Float weights behind Q/DQ, and float biases: what every release from 8.5 on parses.
            "AddQDQPairToWeight": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(WEIGHTED),
        },
    )


def _for_cpu(
    model: onnx.ModelProto, calibration: Calibration, exclude: list[str], only: list[str]
) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType

    pool_as_operator(model)
    return _insert(
        model,
        calibration,
        [*exclude, *float_arithmetic(model)],
        only,
        activation=QuantType.QUInt8,
        operators=_CPU_OPERATORS,
        options={
            "ActivationSymmetric": False,
            "WeightSymmetric": True,
            # A matrix product is followed by a bias and a GELU or a norm, all in float.
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
        },
    )


def _insert(
    model: onnx.ModelProto,
    calibration: Calibration,
    exclude: list[str],
    only: list[str],
    *,
    activation: Any,
    operators: list[str],
    options: dict[str, Any],
) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=activation,
        tensors_range=calibration.ranges,
        nodes_to_quantize=only,
        nodes_to_exclude=exclude,
        op_types_to_quantize=operators,
        extra_options=options,
    )
    quantizer.quantize_model()
    return quantizer.model.model


def _given(images: np.ndarray | None) -> np.ndarray:
    return np.empty((0, 3, 1, 1), np.float32) if images is None else images
