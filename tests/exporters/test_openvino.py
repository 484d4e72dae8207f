"""OpenVINO IR: fp16 weights, verification by layer, set aside with all files, atomic writes."""

import sys

import numpy as np
import onnx
import pytest

from exporters import runtimes
from exporters.errors import ExportError, MissingPackageError, VerificationFailed
from exporters.onnx_export import export_onnx
from exporters.openvino_export import export_openvino
from exporters.verify import require, verify

from .conftest import SIZE, settled
from .test_verify import corrupt


def test_weights_are_halved_and_what_the_file_says_goes_along(exported, images, tmp_path):
    source = exported("resnet18").path

    written = export_openvino(source, tmp_path / "net.xml")

    assert written.precision == "fp16"
    assert written.size_bytes < 0.55 * source.stat().st_size
    assert runtimes.open(written.path).metadata == {"classes": '["a", "b"]'}
    runner = runtimes.open(written.path).run
    for batch in (1, 5):
        assert runner(images[:batch])["logits"].shape == (batch, 10)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.bin", "net.xml"]


@pytest.mark.parametrize(
    ("name", "module"), [("resnet18", "layer2.0.conv2"), ("regnety_002", "s3.b2.conv2.conv")]
)
def test_a_wrong_ir_is_put_aside_whole_and_its_layer_is_named(
    exported, images, tmp_path, name, module
):
    original = exported(name).path
    wrong = corrupt(original, tmp_path / "wrong.onnx", module=module)
    written = export_openvino(wrong, tmp_path / "net.xml", half_weights=False)
    wrong.unlink()

    result = verify(runtimes.open(original).run, runtimes.open(written.path).run, images)
    with pytest.raises(VerificationFailed, match=f"differs is '{module}'"):
        require(result, written.path, reference=original, images=images)

    aside = [f"net.failed-verification.{suffix}" for suffix in ("bin", "xml")]
    assert sorted(file.name for file in tmp_path.iterdir()) == aside


def test_an_operator_that_openvino_has_not_is_named_and_nothing_is_written(tmp_path):
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Teleport", ["images"], ["y"], domain="nowhere")
    shape = [1, 3, 8, 8]
    graph = onnx.helper.make_graph([node], "g", [value("images", 1, shape)], [value("y", 1, shape)])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("nowhere", 1)]
    source = tmp_path / "m.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), source)

    with pytest.raises(ExportError, match="Teleport") as caught:
        export_openvino(source, tmp_path / "net.xml")

    assert "\n" not in caught.value.message
    assert list(tmp_path.iterdir()) == [source]


def test_bad_paths_are_one_clear_error(exported, tmp_path):
    source = exported("mobilenetv3_small_100").path
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(ExportError, match="cannot write"):
        export_openvino(source, tmp_path / "file" / "net.xml")
    with pytest.raises(ExportError, match="no ONNX file"):
        export_openvino(tmp_path / "nothing.onnx", tmp_path / "net.xml")
    with pytest.raises(ExportError, match=r"\.xml file"):
        export_openvino(source, tmp_path / "net.bin")
    (tmp_path / "net.xml").write_text("<net")
    (tmp_path / "net.bin").write_bytes(b"")
    with pytest.raises(ExportError, match="cannot load"):
        runtimes.open(tmp_path / "net.xml")


def test_without_openvino_one_line_says_what_to_install(exported, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)

    with pytest.raises(MissingPackageError) as caught:
        export_openvino(exported("resnet18").path, tmp_path / "net.xml")

    assert caught.value.hint == 'pip install "hgkd-edge[openvino]"'
    assert caught.value.exit_code == 2


def test_a_fixed_batch_is_run_image_by_image(tmp_path, images):
    source = tmp_path / "one.onnx"
    model = settled("mobilenetv3_small_100", shallow=True, num_classes=10)
    export_onnx(model, source, input_size=(3, SIZE, SIZE), dynamic_batch=False)
    written = export_openvino(source, tmp_path / "one.xml", half_weights=False)

    wanted = runtimes.open(source).run(images)["logits"]
    got = runtimes.open(written.path).run(images)["logits"]

    np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())
