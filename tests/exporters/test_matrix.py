"""Every promised architecture, in every precision, in every runtime. 64 px, few images."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from exporters import runtimes
from exporters.calibrate import calibrate
from exporters.choices import FLAVORS
from exporters.fp16 import convert_fp16
from exporters.onnx_export import export_onnx
from exporters.onnx_info import onnx_info, read_onnx
from exporters.openvino_export import export_openvino
from exporters.quantize import quantize_int8
from exporters.trt_build import available, build_engine
from exporters.verify import Tolerance, verify, verify_onnx

from .conftest import SIZE, photo_like, settled

MODELS = [
    "resnet18",
    "resnet50",
    "mobilenetv3_large_100",
    "efficientnet_lite0",
    "convnext_tiny",
    "regnety_008",
]
PRECISIONS = ["fp32", "fp16", "int8"]
# Classes of an untrained network lie closer together than INT8's error, and its features have no
# direction that training would have made robust: only gross damage is looked for here.
UNTRAINED = Tolerance(relative=None, cosine=0.8, top1=0.0)

needs_rtx = pytest.mark.skipif(
    not any(flavor.name == "tensorrt_rtx" for flavor in available()),
    reason="TensorRT-RTX is not installed",
)


class Chain(NamedTuple):
    """One network's files."""

    model: object
    fp32: Path
    fp16: Path
    int8: dict[str, Path]

    def file(self, precision: str, flavor: str) -> Path:
        return {"fp32": self.fp32, "fp16": self.fp16, "int8": self.int8[flavor]}[precision]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Chain]:
    """Export and convert a network, once for all its tests."""

    @cache
    def make(name: str) -> Chain:
        folder = tmp_path_factory.mktemp(name)
        model, source = settled(name, shallow=True, num_classes=10), folder / "net.fp32.onnx"
        export_onnx(model, source, input_size=(3, SIZE, SIZE))
        convert_fp16(source, folder / "net.fp16.onnx", images=photo_like(4, seed=3))
        calibration = calibrate(read_onnx(source), photo_like(8, seed=7))
        small = {flavor: folder / f"net.int8-{flavor}.onnx" for flavor in FLAVORS}
        for flavor, path in small.items():
            quantize_int8(source, path, calibration=calibration, flavor=flavor)
        return Chain(model, source, folder / "net.fp16.onnx", small)

    return make


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_onnx_runtime(chain, images, name, precision):
    network = chain(name)
    reference = network.model if precision == "fp32" else network.fp32
    tolerance = UNTRAINED if precision == "int8" else None

    for flavor in FLAVORS if precision == "int8" else ("cpu",):
        path = network.file(precision, flavor)
        assert onnx_info(path).precision == precision
        agreement = verify_onnx(reference, path, images, precision=precision, tolerance=tolerance)
        assert agreement.passed, f"{flavor}: {agreement.describe()}"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_openvino(chain, images, tmp_path, name, precision):
    network = chain(name)
    source = network.int8["cpu"] if precision == "int8" else network.fp32

    written = export_openvino(source, tmp_path / "net.xml", half_weights=precision == "fp16")

    agreement = verify(
        runtimes.open(source).run,
        runtimes.open(written.path).run,
        images,
        precision=precision,
        tolerance=UNTRAINED if precision == "int8" else None,
    )
    assert written.precision == precision
    assert agreement.passed, agreement.describe()


@needs_rtx
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_tensorrt_rtx_builds(chain, tmp_path, name, precision):
    source = chain(name).file(precision, "tensorrt")

    built = build_engine(
        source, tmp_path / "net.plan", backend="tensorrt_rtx", compute_capabilities=["8.9"]
    )

    assert (built.precision, built.profile["max"]) == (precision, [16, 3, SIZE, SIZE])
    assert built.size_bytes > 0
