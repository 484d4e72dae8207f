"""A small network of every task as ONNX, and a clip."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hgkd_edge.data.input_spec import InputSpec
from hgkd_edge.tasks.answers import GEOMETRY
from tests.video.clips import make_clip

SIDE = 64
CLASSES = ("hat", "dress", "shirt")
WEIGHTS = {
    "mix": np.array([[2, -1, -1], [-1, 2, -1], [-1, -1, 2]], np.float32).reshape(3, 3, 1, 1),
    "places": np.array([[[4, 4, 30, 30], [20, 10, 60, 50]]], np.float32),
    "flat": np.array([1, 1, 3], np.int64),
    "plain": np.array([1, 3], np.int64),
    "twice": np.array([1, 2, 3], np.int64),
}
# Each channel is a class: how red, green or blue an image, a pixel or a whole box's picture is.
NODES = {
    "classify": [
        ("Conv", ["image", "mix"], "maps"),
        ("GlobalAveragePool", ["maps"], "means"),
        ("Reshape", ["means", "plain"], "logits"),
    ],
    "segment": [("Conv", ["image", "mix"], "logits")],
    "detect": [
        ("Conv", ["image", "mix"], "maps"),
        ("GlobalAveragePool", ["maps"], "means"),
        ("Reshape", ["means", "flat"], "one"),
        ("Expand", ["one", "twice"], "both"),
        ("Sigmoid", ["both"], "scores"),
        ("Identity", ["places"], "boxes"),
    ],
}
OUTPUTS = {
    "classify": {"logits": [1, 3]},
    "segment": {"logits": [1, 3, SIDE, SIDE]},
    "detect": {"boxes": [1, 2, 4], "scores": [1, 2, 3]},
}


def write_network(task: str, path: Path) -> Path:
    """An ONNX file as `export` writes it, of a network that knows colors."""
    nodes = [helper.make_node(op, inputs, [output]) for op, inputs, output in NODES[task]]
    used = {name for node in nodes for name in node.input}
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        task,
        [helper.make_tensor_value_info("image", floats, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(n, floats, shape) for n, shape in OUTPUTS[task].items()],
        [numpy_helper.from_array(value, name) for name, value in WEIGHTS.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    spec = InputSpec((SIDE, SIDE), (0.5,) * 3, (0.25,) * 3, GEOMETRY[task])
    own = {"task": json.dumps(task), "classes": json.dumps(CLASSES)}
    stated = {f"hgkd_edge.{key}": text for key, text in (own | spec.metadata()).items()}
    helper.set_model_props(model, stated)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """ONNX files by task."""
    folder = tmp_path_factory.mktemp("networks")
    return {task: write_network(task, folder / f"{task}.onnx") for task in NODES}


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video file of 20 frames."""
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")
