"""Processing inside the ONNX file; its pixels are tested in tests/data/test_input_spec.py."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from exporters.bake import Preprocessing, bake
from exporters.errors import ExportError
from exporters.onnx_export import export_onnx
from exporters.onnx_info import onnx_info, open_session
from hgkd_edge.tasks.answers import select_boxes

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
    session = open_session(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: images}), strict=True))


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


def test_detections_are_those_of_our_own_suppression(heads, images, tmp_path):
    bake(heads / "nms.onnx", tmp_path / "n.onnx", postprocessing="nms")

    got = run(tmp_path / "n.onnx", images)["detections"]

    raw = run(heads / "nms.onnx", images)
    assert len(got) > 20
    for index in range(len(images)):
        boxes, labels, scores = select_boxes(
            raw["boxes"][index], raw["scores"][index], threshold=0.4, limit=10_000
        )
        mine = got[got[:, 0] == index]
        mine = mine[np.lexsort((mine[:, 6], -mine[:, 5]))]
        wanted = np.column_stack((boxes, scores, labels))
        wanted = wanted[np.lexsort((wanted[:, 5], -wanted[:, 4]))]
        np.testing.assert_allclose(mine[:, 1:], wanted, atol=1e-4)


def test_both_ends_at_once_and_the_metadata_stays(exported, tmp_path):
    path = tmp_path / "n.onnx"
    preprocessing = Preprocessing(**PLAIN, frame=(90, 120))

    written = bake(
        exported("resnet18").path, path, preprocessing=preprocessing, postprocessing="softmax"
    )

    assert [(i.name, i.shape, i.dtype) for i in written.inputs] == [
        ("frames", ("batch", 90, 120, 3), "uint8")
    ]
    assert [output.name for output in written.outputs] == ["probabilities"]
    assert onnx_info(path).metadata == {
        "classes": '["a", "b"]',
        "hgkd_edge.baked": '["preprocessing", "postprocessing"]',
        "hgkd_edge.frame": "[90, 120]",
    }
    onnx.checker.check_model(onnx.load(path), full_check=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"postprocessing": "nms"}, "needs the output boxes and scores; here: logits"),
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
