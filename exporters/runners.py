"""One face for everything that runs a network: images in, named outputs out.

A runner takes f32[B, 3, H, W] and returns `{output name: f32[B, ...]}`. `verify` compares two of
them and does not care what is behind either. A network of fixed batch is called again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import ExportError
from .onnx_info import exposed, open_session, read_onnx

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Outputs", "Runner", "in_batches", "onnx_runner", "torch_runner"]

_FEED_TYPES = {"tensor(float16)": np.float16, "tensor(uint8)": np.uint8}

Outputs = dict[str, np.ndarray]
Runner = Callable[[np.ndarray], Outputs]


def torch_runner(model: nn.Module, output_names: Sequence[str]) -> Runner:
    """Run a PyTorch model in evaluation mode, on the device its parameters are on."""
    import torch

    def run(images: np.ndarray) -> Outputs:
        training = model.training
        first = next(model.parameters(), None)
        batch = torch.from_numpy(np.ascontiguousarray(images))
        try:
            with torch.no_grad():
                outputs = model.eval()(batch if first is None else batch.to(first.device))
        finally:
            model.train(training)
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        arrays = [output.float().cpu().numpy() for output in outputs]
        return dict(zip(output_names, arrays, strict=True))

    return run


def onnx_runner(path: str | Path | bytes, *, inner: Sequence[str] = ()) -> Runner:
    """Run an ONNX file, or the bytes of one, with ONNX Runtime on the CPU.

    Args:
        path: The file, or its bytes.
        inner: Tensors inside the graph of a file to give next to its outputs.

    Raises:
        ConversionFailed: ONNX Runtime refuses the file.
    """
    if inner and not isinstance(path, bytes):
        path = exposed(read_onnx(path), inner).SerializeToString()
    session = open_session(path)
    feed = session.get_inputs()[0]
    names = [output.name for output in session.get_outputs()]
    dtype = _FEED_TYPES.get(feed.type, np.float32)

    def run(images: np.ndarray) -> Outputs:
        results = session.run(names, {feed.name: images.astype(dtype, copy=False)})
        return {
            name: result.astype(np.float32) for name, result in zip(names, results, strict=True)
        }

    return in_batches(run, feed.shape[0])


def in_batches(run: Runner, batch: int | str | None) -> Runner:
    """A runner of any number of images, where the network's own batch is fixed.

    Args:
        run: Takes exactly `batch` images.
        batch: A number; anything else is a free axis.

    Raises (when run):
        ExportError: The number of images is no multiple of the batch.
    """
    if not isinstance(batch, int):
        return run

    def run_parts(images: np.ndarray) -> Outputs:
        if len(images) % batch:
            raise ExportError(
                f"the network takes batches of {batch} only, not {len(images)} images",
                hint="export it with a dynamic batch",
            )
        parts = []
        for start in range(0, len(images), batch):
            part = run(images[start : start + batch])
            if "detections" in part:  # rows that begin with the number of their image
                part["detections"][:, 0] += start
            parts.append(part)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return run_parts
