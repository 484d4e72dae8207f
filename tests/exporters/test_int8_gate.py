"""The INT8 verification accepts good files and rejects networks with a damaged layer."""

from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import qdq_quantizer

from exporters import runtimes
from exporters.calibrate import calibrate
from exporters.onnx_info import read_onnx
from exporters.quantize import FLAVORS, quantized_graph
from exporters.verify import Verification, verify

from .conftest import photo_like

NETWORKS = {
    "mobilenetv3_small_100": ("conv_stem", "blocks.2.0.conv_dw", "blocks.4.1.conv_pwl"),
    "resnet18": ("conv1", "layer2.0.conv1", "layer4.0.conv2"),
}


def coarse(weight):
    """One scale for all channels and four bits: what a per-tensor quantizer does to depthwise."""
    scale = np.abs(weight).max() / 7
    return np.round(weight / scale) * scale


DAMAGES = {
    "zeroed": lambda weight: weight * 0,
    "doubled": lambda weight: weight * 2,
    "channels permuted": lambda weight: np.roll(weight, 1, axis=0),
    "coarse": coarse,
    "bias": lambda bias: bias + 2 * bias.std(),
}


@pytest.fixture(scope="module", autouse=True)
def scales_once():
    """Compute the scale of equal channels once: ONNX Runtime does it in Python."""
    compute, known = getattr(qdq_quantizer, "compute_data_quant_params", None), {}
    if compute is None:  # in old versions, under another name
        yield
        return

    def once(data, *how, **options):
        key = data.tobytes(), *map(str, (data.dtype, how, options))
        if key not in known:
            known[key] = compute(data, *how, **options)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qdq_quantizer, "compute_data_quant_params", once)
        yield


@pytest.fixture(scope="module")
def judged(exported) -> Callable[..., Verification]:
    """The INT8 file of a network, perhaps with a damaged layer, compared with the fp32 file."""
    images = photo_like(64)

    @cache
    def original(name):
        path = exported(name, shallow=False).path  # in few layers, damage shows less
        model = read_onnx(path)
        wanted = runtimes.open(path).run(images)
        return model, calibrate(model, photo_like(32, seed=7)), lambda _: wanted

    def judge(name, *, flavor="cpu", layer="", damage=""):
        model, calibration, reference = original(name)
        if layer:
            model = damaged(model, layer, damage)
        graph = quantized_graph(model, calibration, flavor=flavor)
        runner = runtimes.open(graph.SerializeToString()).run
        return verify(reference, runner, images, precision="int8", batch_size=64)

    return judge


def damaged(model, layer, damage):
    model, copied = onnx.ModelProto(), model
    model.CopyFrom(copied)
    node = next(n for n in model.graph.node if n.name.startswith(f"{layer}/"))
    name = node.input[2 if damage == "bias" else 1]
    tensor = next(w for w in model.graph.initializer if w.name == name)
    values = DAMAGES[damage](numpy_helper.to_array(tensor)).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return model


@pytest.mark.parametrize("flavor", FLAVORS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_sound_int8_file_passes(judged, name, flavor):
    found = judged(name, flavor=flavor)

    assert found.passed, found.describe()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("name", "layer"), [(name, layer) for name, layers in NETWORKS.items() for layer in layers]
)
def test_a_damaged_layer_is_refused_wherever_it_is(judged, name, layer, damage):
    found = judged(name, layer=layer, damage=damage)

    assert not found.passed, found.describe()
