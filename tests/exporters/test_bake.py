"""Processing inside the ONNX file; its pixels are tested in tests/data/test_input_spec.py."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from exporters.bake import Preprocessing, bake
from exporters.errors import ConversionFailed, ExportError
from exporters.onnx_export import export_onnx
from exporters.onnx_info import onnx_info
from exporters.runtimes.ort import OrtSession
from exporters.runtimes.session import in_batches
from exporters.trt_build import available, build_engine
from hgkd_edge.tasks.suppression import SUPPRESSION, select_boxes

from .conftest import SIZE

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Networks of 1x1 convolutions with the outputs of the three tasks."""

    class Boxes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.boxes, self.scores = nn.Conv2d(3, 4, 16, 8), nn.Conv2d(3, 5, 16, 8)

        def forward(self, x):
            corner = 30 * self.boxes(x).flatten(2).transpose(1, 2)  # [B, A, 4]
            boxes = torch.cat((corner[..., :2], corner[..., :2] + 8 + corner[..., 2:].abs()), -1)
            return boxes, (3 * self.scores(x)).flatten(2).transpose(1, 2).sigmoid()

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("heads")
    size = (3, SIZE, SIZE)
    classify = nn.Sequential(nn.Conv2d(3, 5, 16, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    export_onnx(classify, folder / "softmax.onnx", input_size=size, output_names=["logits"])
    segment = nn.Conv2d(3, 5, 1)
    export_onnx(segment, folder / "argmax.onnx", input_size=size, output_names=["logits"])
    export_onnx(Boxes(), folder / "nms.onnx", input_size=size, output_names=["boxes", "scores"])
    return folder


def run(path, images):
    session = OrtSession(path)
    return session.infer({session.input.name: images})


def test_softmax_gives_probabilities(heads, images, tmp_path):
    bake(heads / "softmax.onnx", tmp_path / "n.onnx", postprocessing="softmax")

    logits = run(heads / "softmax.onnx", images)["logits"].astype(np.float64)
    wanted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(run(tmp_path / "n.onnx", images)["probabilities"], wanted, atol=1e-6)


def test_argmax_gives_the_class_of_every_pixel(heads, images, tmp_path):
    bake(heads / "argmax.onnx", tmp_path / "n.onnx", postprocessing="argmax")

    got = run(tmp_path / "n.onnx", images)["classes"]
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, run(heads / "argmax.onnx", images)["logits"].argmax(1))


def suppressed_outside(raw, index, **rule):
    """The result of hgkd-edge's suppression for an image: rows in the file's format."""
    boxes, labels, scores = select_boxes(raw["boxes"][index], raw["scores"][index], **rule)
    return np.column_stack((np.full(len(boxes), index), boxes, scores, labels))


def by_score(rows):
    return rows[np.lexsort((rows[:, 1], rows[:, 6], -rows[:, 5], rows[:, 0]))]


def test_detections_are_those_of_our_own_suppression(heads, images, tmp_path):
    bake(heads / "nms.onnx", tmp_path / "n.onnx", postprocessing=SUPPRESSION)

    got = run(tmp_path / "n.onnx", images)["detections"]

    raw = run(heads / "nms.onnx", images)
    wanted = np.concatenate([suppressed_outside(raw, index) for index in range(len(images))])
    assert len(got) > 20
    np.testing.assert_allclose(by_score(got), by_score(wanted), atol=1e-4)


def crowd(classes: int, anchors: int, *, free: bool = False) -> onnx.ModelProto:
    """A network whose images hold many boxes apart from each other, of many classes."""
    value, rng = onnx.helper.make_tensor_value_info, np.random.default_rng(0)
    corners = 8.0 * np.stack(np.divmod(np.arange(anchors), 40), axis=-1) - 60
    boxes = np.concatenate((corners, corners + 10), axis=-1).astype(np.float32)[None]
    scores = rng.uniform(0.3, 1, (1, anchors, classes)).astype(np.float32)
    length = "A" if free else anchors
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("ReduceSum", ["images"], ["sum"], keepdims=0),
            onnx.helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
            onnx.helper.make_node("Add", ["all_boxes", "nothing"], ["boxes"]),
            onnx.helper.make_node("Add", ["all_scores", "nothing"], ["scores"]),
        ],
        "crowd",
        [value("images", 1, [1, 3, 8, 8])],
        [value("boxes", 1, [1, length, 4]), value("scores", 1, [1, length, classes])],
        [
            onnx.numpy_helper.from_array(boxes, "all_boxes"),
            onnx.numpy_helper.from_array(scores, "all_scores"),
            onnx.numpy_helper.from_array(np.float32(0), "zero"),
        ],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)


@pytest.mark.parametrize(
    ("classes", "anchors", "free", "found"),
    [
        (3, 200, False, 100),  # more objects than the limit of an image, in each class
        (20, 40, False, 100),  # more than the limit in all, fewer in each class
        (20, 4000, False, 100),  # more candidates than are looked at
        (3, 200, True, 100),
        (2, 20, True, 33),  # fewer candidates than are looked at, of a number unknown beforehand
    ],
)
def test_a_crowd_has_the_same_objects_inside_the_file_and_outside(
    tmp_path, classes, anchors, free, found
):
    onnx.save(crowd(classes, anchors, free=free), tmp_path / "plain.onnx")
    images = np.zeros((1, 3, 8, 8), np.float32)

    bake(tmp_path / "plain.onnx", tmp_path / "n.onnx", postprocessing=SUPPRESSION)

    got = run(tmp_path / "n.onnx", images)["detections"]
    wanted = suppressed_outside(run(tmp_path / "plain.onnx", images), 0)
    assert len(got) == found
    np.testing.assert_allclose(by_score(got), by_score(wanted), atol=1e-4)


def test_both_ends_at_once_and_the_metadata_stays(exported, tmp_path):
    path = tmp_path / "n.onnx"
    preprocessing = Preprocessing(**PLAIN, frame=(90, 120))

    written = bake(
        exported("resnet18").path,
        path,
        preprocessing=preprocessing,
        postprocessing="softmax",
        prefix="our.",
    )

    assert [(i.name, i.shape, i.dtype) for i in written.inputs] == [
        ("frames", ("batch", 90, 120, 3), "uint8")
    ]
    assert [output.name for output in written.outputs] == ["probabilities"]
    assert onnx_info(path).metadata == {
        "classes": '["a", "b"]',
        "our.baked": '["preprocessing", "postprocessing"]',
        "our.frame": "[90, 120]",
    }
    onnx.checker.check_model(onnx.load(path), full_check=True)


@pytest.mark.skipif(
    "tensorrt_rtx" not in [flavor.name for flavor in available()], reason="no tensorrt-rtx"
)
def test_tensorrt_rtx_has_no_suppression_and_says_so(heads, tmp_path):
    bake(heads / "nms.onnx", tmp_path / "n.onnx", postprocessing=SUPPRESSION)

    with pytest.raises(ConversionFailed, match="postprocessing/NonMaxSuppression"):
        build_engine(tmp_path / "n.onnx", tmp_path / "n.plan", backend="tensorrt_rtx")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"postprocessing": SUPPRESSION}, "needs the output boxes and scores; here: logits"),
        ({"postprocessing": "sort"}, "unknown postprocessing 'sort'"),
        (
            {"preprocessing": Preprocessing(**PLAIN, geometry="stretch")},
            "unknown geometry 'stretch'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(exported, tmp_path, options, says):
    with pytest.raises(ExportError, match=says):
        bake(exported("resnet18").path, tmp_path / "n.onnx", **options)

    assert list(tmp_path.iterdir()) == []


def test_detections_of_a_file_for_single_images_name_their_own_image() -> None:
    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        found = int(images.sum())  # number of objects encoded in the image
        return {"detections": np.zeros((found, 7), np.float32)}

    rows = in_batches(run, 1, 1)(np.array([2, 0, 1], np.float32).reshape(3, 1, 1, 1))["detections"]

    assert rows[:, 0].tolist() == [0, 0, 2]
