"""Test a new ONNX file: static checks, then runs at several shapes.

A frozen axis passes every static check, so each free axis is run with sizes other than the traced.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from .errors import ConversionFailed, reason_of
from .runtimes.ort import OrtSession

__all__ = ["check_graph", "try_shapes"]

_BATCHES = (1, 2, 5)
_TALLER, _WIDER = 32, 64  # multiples of the deepest stride, and not equal


def check_graph(path: Path) -> None:
    """Check the file with ONNX's own checker, shapes included.

    Raises:
        ConversionFailed: The graph is invalid.
    """
    model = onnx.load(path)
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        raise ConversionFailed(
            f"the exporter wrote an invalid graph: {reason_of(error)}",
            hint="report it with the model's name and the versions of torch and onnx",
        ) from error


def try_shapes(
    path: Path, model: nn.Module, input_size: tuple[int, int, int], *, free: Collection[str]
) -> None:
    """Run the file at several sizes of its free axes, and compare the outputs' shapes.

    Args:
        path: The ONNX file.
        model: What it was made from.
        input_size: (C, H, W) it was traced with.
        free: Names of its free axes among `batch`, `height`, `width`.

    Raises:
        ConversionFailed: An axis that the file declares free is not free.
    """
    channels, height, width = input_size
    shapes = [(batch, *input_size) for batch in (_BATCHES if "batch" in free else (1,))]
    if "height" in free:
        shapes.append((1, channels, height + _TALLER, width + _WIDER))
    session = OrtSession(path)
    for shape in shapes:
        images = np.zeros(shape, np.float32)
        try:
            with torch.no_grad():
                outputs = model(torch.from_numpy(images))
            results = session.infer({session.input.name: images})
        except Exception as error:  # from the model or from onnxruntime; no common base class
            raise _frozen(shape, reason_of(error.__cause__ or error)) from error
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
        wanted = [tuple(output.shape) for output in outputs]
        found = [result.shape for result in results.values()]
        if found != wanted:
            raise _frozen(shape, f"outputs are {found}, not {wanted}")


def _frozen(shape: tuple[int, ...], reason: str) -> ConversionFailed:
    return ConversionFailed(
        f"the exported network does not run on images {list(shape)}: {reason}",
        hint="some layer fixed the batch or the size while tracing; export with a fixed batch or "
        "size",
    )
