"""Compute every floating-point tensor inside an ONNX graph for given images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .onnx_info import exposed, graph_inputs
from .runtimes.ort import OrtSession

if TYPE_CHECKING:
    import onnx

__all__ = ["intermediate_values"]


def intermediate_values(model: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    """Run the graph node by node as written and keep everything.

    Args:
        model: The graph; not changed.
        images: [B, 3, H, W], cast to the type of the graph's input.

    Returns:
        f32 arrays by tensor name, outputs of the graph included, weights not.
    """
    inside = (name for node in model.graph.node for name in node.output)
    session = OrtSession(exposed(model, inside).SerializeToString(), optimize=False)
    feed = graph_inputs(model)[0]
    results = session.infer({feed.name: images.astype(feed.dtype, copy=False)})
    return {
        name: result.astype(np.float32)
        for name, result in results.items()
        if np.issubdtype(result.dtype, np.floating)
    }
