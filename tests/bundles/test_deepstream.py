"""The `deepstream` bundle: nvinfer's configuration, read and applied as NVIDIA's sources do it."""

from __future__ import annotations

import configparser
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from exporters import ExportError, runtimes
from hgkd_edge.bundles import require_bundle
from hgkd_edge.bundles.deepstream import _within_frame, read_as_nvinfer
from hgkd_edge.export_options import ExportOptions
from hgkd_edge.exportable import load_exportable
from hgkd_edge.tasks.answers import decide
from hgkd_edge.tasks.suppression import box_iou
from tests.bundles.conftest import Deployed
from tests.bundles.helpers import FRAME, TASKS, real_images

# Keys of "Gst-nvinfer File Configuration Specifications" in NVIDIA's DeepStream documentation.
PROPERTIES = {
    "gpu-id", "gie-unique-id", "process-mode", "interval", "batch-size", "network-type",
    "network-mode", "onnx-file", "labelfile-path", "infer-dims", "model-color-format",
    "net-scale-factor", "maintain-aspect-ratio", "output-blob-names", "classifier-threshold",
    "num-detected-classes", "segmentation-threshold", "segmentation-output-order", "cluster-mode",
    "parse-bbox-func-name", "custom-lib-path",
}  # fmt: skip
ATTRIBUTES = {"pre-cluster-threshold", "nms-iou-threshold", "topk"}


def configuration(folder: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    assert parser.read(folder / "config_infer_primary_my-run.txt")
    return parser


@pytest.mark.parametrize("task", TASKS)
def test_the_configuration_has_documented_keys_and_fits_the_network(
    task: str, deployed: Callable[[str], Deployed]
) -> None:
    folder = deployed(task).folder("deepstream")

    config = configuration(folder)

    keys = config["property"]
    graph = onnx.load(str(folder / keys["onnx-file"])).graph
    assert set(keys) <= PROPERTIES
    assert set(config.sections()) == {
        "property",
        *(["class-attrs-all"] if task == "detect" else []),
    }
    if task == "detect":
        assert set(config["class-attrs-all"]) == ATTRIBUTES
        assert keys["cluster-mode"] == "2"
    assert keys["network-type"] == {"detect": "0", "classify": "1", "segment": "2"}[task]
    assert [output.name for output in graph.output] == keys["output-blob-names"].split(";")
    (frames,) = graph.input
    shape = [axis.dim_value for axis in frames.type.tensor_type.shape.dim]
    assert shape[1:] == [3, *FRAME] == [*map(int, keys["infer-dims"].split(";"))]
    assert frames.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    # Outputs of unknown length cannot be bound.
    for output in graph.output:
        assert all(a.dim_value for a in output.type.tensor_type.shape.dim[1:]), output.name


@pytest.mark.parametrize("task", TASKS)
def test_labels_are_listed_as_nvinfer_reads_them(
    task: str, deployed: Callable[[str], Deployed]
) -> None:
    lines = (deployed(task).folder("deepstream") / "labels.txt").read_text().splitlines()

    # NVIDIA's reader cuts every line at each `;`: a line is an output of a classifier, or a class.
    names = [line.split(";") for line in lines]
    classes = deployed(task).run.finetune_result().per_class
    if task == "classify":
        assert len(names) == 1
        assert set(classes) <= set(names[0])
    else:
        assert all(len(name) == 1 for name in names)
        assert len(names) >= 2 or task == "detect"


@pytest.mark.parametrize("task", TASKS)
def test_a_frame_given_and_read_as_nvinfer_does_has_the_answers_of_the_plain_network(
    task: str, deployed: Callable[[str], Deployed], photos: Path
) -> None:
    made = deployed(task)
    folder = made.folder("deepstream")
    keys = configuration(folder)["property"]
    plain = runtimes.open(Path(made.result.onnx.path)).run
    predict_settings = made.folder("predict")
    for file in real_images(task, photos)[:3]:
        frame = Image.open(file).convert("RGB").resize((FRAME[1], FRAME[0]))
        factor = float(keys["net-scale-factor"])
        given = factor * np.asarray(frame, np.float32).transpose(2, 0, 1)[None]

        computed = runtimes.open(folder / "model.onnx").infer({"frames": given})
        outputs = {name: computed[name] for name in keys["output-blob-names"].split(";")}

        prepared, placed, classes = _ours(predict_settings, frame)
        wanted = decide(task, _within_frame(plain(prepared), placed))
        got = read_as_nvinfer(task, outputs, placed, classes=classes)
        if task == "classify":
            np.testing.assert_allclose(got["probabilities"], wanted["probabilities"], atol=0.02)
        elif task == "segment":
            assert (got["classes"] == wanted["classes"]).mean() > 0.98
        else:
            _same_boxes(got["detections"], wanted["detections"])


def _ours(folder: Path, frame: Image.Image) -> tuple[np.ndarray, tuple[int, int], int]:
    """The plain network's input, the frame's area on it, and how many classes there are."""
    from hgkd_edge.data.resize import place
    from hgkd_edge.task_model import open_task_model

    served = open_task_model(folder / "model.onnx")
    size = served.input.size
    placed = place((frame.height, frame.width), size).placed
    return served.input.array(frame), placed, len(served.classes)


def _same_boxes(got: np.ndarray, wanted: np.ndarray) -> None:
    sure = wanted[wanted[:, 5] > 0.45]  # boxes near the threshold may differ
    for row in sure:
        same_class = got[got[:, 6] == row[6]]
        assert len(same_class)
        assert box_iou(row[None, 1:5], same_class[:, 1:5]).max() > 0.8
    assert len(sure) <= len(got) <= len(wanted) + 3


def test_a_frame_of_unknown_size_is_refused() -> None:
    with pytest.raises(ExportError, match="size of the camera's frames") as caught:
        ExportOptions(bundles=("deepstream",))

    assert "--frame 1080x1920" in caught.value.hint


@pytest.mark.parametrize("name", ["a;b", "a\nb", "a\rb"])
@pytest.mark.parametrize("bundle", ["deepstream", "triton"])
def test_a_class_name_that_would_be_read_as_two_is_refused(
    name: str, bundle: str, deployed: Callable[[str], Deployed]
) -> None:
    subject = replace(load_exportable(deployed("classify").run), classes=("hat", name))
    if bundle == "triton" and ";" in name:
        require_bundle(bundle, subject)
        return

    with pytest.raises(ExportError, match="separates names in labels.txt"):
        require_bundle(bundle, subject)
