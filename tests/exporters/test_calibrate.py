"""Ranges of activations for INT8."""

import numpy as np
import pytest
from torch import nn

from exporters._intermediates import intermediate_values
from exporters.calibrate import METHODS, calibrate
from exporters.choices import FLAVORS
from exporters.errors import ExportError
from exporters.onnx_export import export_onnx
from exporters.onnx_info import read_onnx
from exporters.quantize import quantize_int8
from exporters.verify import Tolerance, verify_onnx

from .conftest import photo_like


def test_a_mean_range_is_the_mean_of_each_images_extremes(exported):
    model, photos = read_onnx(exported("resnet18").path), photo_like(5)

    calibration = calibrate(model, photos, method="mean")

    each = [intermediate_values(model, photo[None]) for photo in photos]
    for node in model.graph.node:
        if node.op_type == "Add":
            seen = [values[node.output[0]] for values in each]
            low = np.mean([values.min() for values in seen])
            high = np.mean([values.max() for values in seen])
            found = [side.item() for side in calibration.ranges[node.output[0]].range_value]
            assert found == pytest.approx([low, high], rel=1e-4)


def test_one_loud_image_does_not_decide_the_ranges(exported):
    model, photos = read_onnx(exported("resnet18").path), photo_like(16)
    first = next(node.output[0] for node in model.graph.node if node.op_type == "Conv")
    quiet = calibrate(model, photos, method="mean").largest(first)
    photos[7] *= 50

    loud = {m: calibrate(model, photos, method=m).largest(first) for m in ("mean", "minmax")}

    assert loud["minmax"] > 10 * quiet
    assert loud["mean"] < 6 * quiet


@pytest.mark.parametrize("method", METHODS)
def test_no_method_makes_a_range_larger_than_what_was_seen(exported, method):
    model, photos = read_onnx(exported("resnet18").path), photo_like(4)

    calibration = calibrate(model, photos, method=method)

    for name, values in intermediate_values(model, photos).items():
        if name in calibration and name not in {out.name for out in model.graph.output}:
            assert calibration.largest(name) <= 1.001 * np.abs(values).max()


def test_an_unknown_method_is_refused_with_those_known(exported):
    with pytest.raises(ExportError, match="'guess'") as caught:
        calibrate(read_onnx(exported("resnet18").path), photo_like(1), method="guess")

    assert "percentile, mean, minmax" in caught.value.hint


@pytest.mark.parametrize("flavor", FLAVORS)
def test_a_network_of_free_height_and_width_is_calibrated_on_images_of_any_size(tmp_path, flavor):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    source = tmp_path / "net.onnx"
    export_onnx(network.eval(), source, input_size=(3, 32, 32), dynamic_size=True)

    small = quantize_int8(
        source, tmp_path / "small.onnx", images=photo_like(8, size=40), flavor=flavor
    )

    unseen = photo_like(8, seed=1, size=64)
    untrained = Tolerance(relative=None, cosine=0.97, top1=0.0)
    found = verify_onnx(source, small.path, unseen, precision="int8", tolerance=untrained)
    assert found.passed, found.describe()
    with pytest.raises(ExportError, match="the network takes"):
        calibrate(read_onnx(source), unseen[:, :1])


class HardlyVaries(nn.Module):
    """A layer whose outputs differ in their last bits only, at first."""

    def __init__(self):
        super().__init__()
        self.still, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        nn.init.constant_(self.still.weight, 1e-7)
        nn.init.constant_(self.still.bias, 1.0)

    def forward(self, x):
        return self.last(self.still(x).relu()).mean((2, 3))


@pytest.mark.parametrize(
    ("method", "later"), [("percentile", 1.0), ("percentile", 1e7), ("entropy", 1e7)]
)
def test_a_layer_that_hardly_varies_is_calibrated_by_its_extremes(tmp_path, caplog, method, later):
    export_onnx(HardlyVaries().eval(), tmp_path / "still.onnx", input_size=(3, 32, 32))
    images = np.random.default_rng(0).random((16, 3, 32, 32), np.float32)
    images[8:] *= later

    calibration = calibrate(read_onnx(tmp_path / "still.onnx"), images, method=method)

    assert calibration.method == "minmax"
    assert f"has no {method}; minmax is used" in caplog.text


def test_an_int8_file_says_how_it_was_calibrated_in_the_end(tmp_path):
    export_onnx(HardlyVaries().eval(), tmp_path / "still.onnx", input_size=(3, 32, 32))
    images = np.random.default_rng(0).random((16, 3, 32, 32), np.float32)

    exported = quantize_int8(tmp_path / "still.onnx", tmp_path / "int8.onnx", images=images)

    assert exported.method == "minmax"
