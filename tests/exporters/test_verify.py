import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporters import runtimes
from exporters import verify as verify_module
from exporters.errors import ExportError, VerificationFailed
from exporters.locate import first_departing_layer
from exporters.onnx_info import onnx_info
from exporters.sidecar import Sidecar, write_sidecar
from exporters.verify import (
    TOLERANCES,
    OutputAgreement,
    Tolerance,
    Verification,
    export_and_verify,
    require,
    verify,
    verify_engine,
    verify_onnx,
)

from .conftest import SIZE, settled


def names_in(folder):
    return sorted(file.name for file in folder.iterdir())


def corrupt(source, target, *, module, tensor=1):
    """Write `source` to `target` with one number of `module`'s weight (1) or bias (2) changed."""
    model = onnx.load(source)
    node = next(n for n in model.graph.node if n.name.startswith(f"{module}/"))
    weight = next(w for w in model.graph.initializer if w.name == node.input[tensor])
    values = numpy_helper.to_array(weight).copy()
    values.reshape(-1)[0] += 3 * np.abs(values).max()
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, target)
    return target


def test_a_faithful_export_passes_with_rounding_errors_only(exported, images):
    network = exported("resnet18")

    result = verify_onnx(network.model, network.path, images, batch_size=5)

    assert result.passed
    assert result.relative_error < 1e-5
    assert result.cosine > 0.999999
    assert result.top1_agreement == 1.0
    assert json.loads(json.dumps(result.to_dict()))["passed"] is True


def test_feature_maps_are_verified_one_by_one(tmp_path, images):
    model = settled("resnet18", shallow=True, features_only=True, out_indices=(1, 2, 3, 4))

    written, result = export_and_verify(model, tmp_path / "maps.onnx", images)

    assert [output.name for output in result.outputs] == [o.name for o in written.outputs]
    assert result.top1_agreement is None


@pytest.mark.parametrize(
    ("name", "module", "tensor"),
    [
        ("resnet18", "conv1", 1),
        ("resnet18", "layer2.0.downsample.0", 1),
        ("resnet18", "layer3.1.conv2", 2),
        ("mobilenetv3_small_100", "blocks.3.0.conv_dw", 1),
        ("convnext_atto", "stages.2.blocks.1.mlp.fc2", 1),
        ("convnext_atto", "stages.0.blocks.0.conv_dw", 2),
        ("regnety_002", "head.fc", 1),
    ],
)
def test_one_wrong_number_fails_the_export_and_its_layer_is_named(
    exported, images, tmp_path, name, module, tensor
):
    network = exported(name)
    path = corrupt(network.path, tmp_path / "net.onnx", module=module, tensor=tensor)

    result = verify_onnx(network.model, path, images)
    with pytest.raises(VerificationFailed) as caught:
        require(result, path, reference=network.model, images=images)

    assert f"the first layer that differs is '{module}'" in caught.value.message
    assert caught.value.exit_code == 1
    assert [file.name for file in tmp_path.iterdir()] == ["net.failed-verification.onnx"]


def test_against_another_onnx_file_the_departing_layer_is_found_by_name(exported, images, tmp_path):
    original = exported("regnety_002").path
    path = corrupt(original, tmp_path / "net.onnx", module="s3.b2.conv2.conv")

    departure = first_departing_layer(original, path, images[:2])

    assert departure is not None
    assert departure.module == "s3.b2.conv2.conv"


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_100"])
def test_no_layer_of_a_faithful_export_departs(exported, images, name):
    network = exported(name)

    assert first_departing_layer(network.model, network.path, images[:2]) is None


def test_non_finite_results_never_pass(exported, images):
    wanted = runtimes.open(exported("resnet18").model, names=["logits"]).run

    def broken(batch):
        return {"logits": np.full((len(batch), 10), np.nan, np.float32)}

    loose = Tolerance(relative=None, cosine=-1.0, top1=0.0)
    assert not verify(wanted, broken, images, tolerance=loose).passed


def test_other_classes_fail_although_the_errors_are_small():
    scores = np.array([[1.0, 0.999], [0.999, 1.0]], np.float32)

    result = verify(
        lambda _: {"logits": scores},
        lambda _: {"logits": scores[:, ::-1].copy()},
        np.zeros((2, 3, 8, 8), np.float32),
        precision="fp16",
    )

    assert result.relative_error < 2e-3
    assert result.top1_agreement == 0.0
    assert not result.passed


def test_verifying_with_nothing_is_an_error(exported, images):
    network = exported("resnet18")

    with pytest.raises(ExportError, match="no images"):
        verify_onnx(network.model, network.path, images[:0])
    with pytest.raises(ExportError, match="unknown precision 'fp8'"):
        verify_onnx(network.model, network.path, images, precision="fp8")


def test_a_network_with_other_outputs_fails(exported, images, tmp_path):
    maps = settled("resnet18", shallow=True, features_only=True, out_indices=(1, 2, 3, 4))
    _, _ = export_and_verify(maps, tmp_path / "maps.onnx", images[:2])

    with pytest.raises(VerificationFailed, match="outputs are"):
        verify_onnx(exported("resnet18").path, tmp_path / "maps.onnx", images)


def test_reading_and_comparing_onnx_files_needs_no_torch(exported):
    path = exported("resnet18").path
    code = (
        "import sys, numpy as np, exporters.verify as v, exporters.trt_build, exporters.onnx_info;"
        f"x = np.ones((1, 3, {SIZE}, {SIZE}), np.float32);"
        f"assert v.verify_onnx({str(path)!r}, {str(path)!r}, x).passed;"
        "assert not {'torch', 'timm', 'hgkd_edge'} & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_network_with_other_outputs_is_put_aside_too(exported, images, tmp_path, monkeypatch):
    model = exported("resnet18").model
    monkeypatch.setattr(verify_module, "verify_onnx", lambda *_: _raise())

    with pytest.raises(VerificationFailed):
        export_and_verify(model, tmp_path / "net.onnx", images)

    assert names_in(tmp_path) == ["net.failed-verification.onnx"]


def _raise():
    raise VerificationFailed("the converted network's outputs are other ones")


def agreement(name, worst_image=0, *, passed=True, **figures):
    """One output's figures; those not given are None."""
    unknown = dict.fromkeys(
        ("max_abs_error", "relative_error", "rms_error", "cosine", "top1", "iou")
    )
    return OutputAgreement(name, worst_image=worst_image, passed=passed, **unknown | figures)


FIGURES = (
    "max_abs_error",
    "relative_error",
    "noise",
    "worst",
    "shift",
    "cosine",
    "top1",
    "kept",
    "iou",
)
LOW = agreement("a", 3, **dict.fromkeys(FIGURES, 0.25))
HIGH = agreement("b", 5, **dict.fromkeys(FIGURES, 0.5))
SILENT = agreement("c", 7)


def proof(*outputs, precision="int8"):
    return Verification(precision, 9, TOLERANCES[precision], outputs)


@pytest.mark.parametrize("outputs", [(LOW, HIGH, SILENT), (SILENT, HIGH, LOW)])
def test_of_several_outputs_the_worst_figure_is_stated(outputs):
    found = proof(*outputs).to_dict()

    errors = ("max_abs_error", "relative_error", "noise", "worst", "shift")
    assert {found[name] for name in errors} == {0.5}
    assert {found[name] for name in ("cosine", "top1_agreement", "kept", "iou")} == {0.25}
    assert proof(*outputs).worst_image == 5
    assert (found["precision"], found["images"], found["passed"]) == ("int8", 9, True)
    assert [output["name"] for output in found["outputs"]] == [one.name for one in outputs]


def test_one_output_out_of_bounds_fails_all():
    assert not proof(LOW, agreement("b", passed=False), HIGH).passed


def test_figures_that_no_output_has_are_none():
    found = proof(SILENT).to_dict()

    assert found["passed"]
    assert {found[name] for name in FIGURES if name != "top1"} == {None}
    assert found["top1_agreement"] is None
    assert proof(SILENT).describe() == "int8, 9 images: "


@pytest.mark.parametrize(
    ("precision", "stated", "unstated"),
    [
        ("fp32", ["relative 5.00e-01 (at most 0.0001)", "cosine 0.250000"], ["spread", "worst"]),
        (
            "int8",
            ["relative 5.00e-01,", "0.500 of the spread (at most 0.35)", "worst image 0.500",
             "alike 0.500 (at most 0.15)"],
            ["cosine"],
        ),
    ],
)  # fmt: skip
def test_a_proof_in_one_line_states_each_figure_that_was_checked(precision, stated, unstated):
    line = proof(LOW, HIGH, precision=precision).describe()

    for part in ["max error 5.00e-01", *stated, "same class 25.0%", "IoU 0.250"]:
        assert part in line
    assert not [part for part in unstated if part in line]


def test_images_are_given_in_batches_that_both_sides_see_alike():
    images = np.arange(7 * 3, dtype=np.float64).reshape(7, 3, 1, 1)
    seen = []

    def network(batch):
        assert batch.dtype == np.float32
        assert batch.flags.c_contiguous
        seen.append(batch[:, 0, 0, 0].tolist())
        return {"embedding": batch.reshape(len(batch), -1)}

    result = verify(network, network, images, batch_size=3)

    batches = [[0.0, 3.0, 6.0], [9.0, 12.0, 15.0], [18.0]]
    assert seen == [batch for batch in batches for _ in range(2)]
    assert result.images == 7
    assert result.tolerance is TOLERANCES["fp32"]
    assert result.passed


def test_a_tolerance_that_is_given_replaces_that_of_the_precision():
    images = np.ones((4, 3, 1, 1), np.float32)
    loose = Tolerance(relative=0.5, cosine=0.5, top1=0.0)

    def network(by):
        return lambda batch: {"embedding": by * batch.reshape(len(batch), -1)}

    assert verify(network(1), network(1.2), images, tolerance=loose).passed
    assert not verify(network(1), network(1.2), images).passed


@pytest.mark.parametrize(
    ("precision", "name", "searched"),
    [("fp32", "net.onnx", True), ("int8", "net.xml", True), ("fp16", "net.plan", False)],
)
def test_the_worst_image_of_what_failed_is_searched_for_the_layer(
    tmp_path, monkeypatch, precision, name, searched
):
    path, images, asked = tmp_path / name, np.arange(9)[:, None], []

    def search(reference, file, worst, *, precision):
        asked.append((reference, file, worst.tolist(), precision))

    path.write_text("wrong")
    if name.endswith(".xml"):
        path.with_suffix(".bin").write_text("wrong")
    monkeypatch.setattr("exporters.locate.first_departing_layer", search)
    failed = proof(agreement("a", 5, passed=False, relative_error=1.0), precision=precision)

    with pytest.raises(VerificationFailed) as caught:
        require(failed, path, reference="net", images=images)

    assert asked == ([("net", path, [[5]], precision)] if searched else [])
    assert ("--max-drop" in caught.value.hint) == (precision == "int8")
    assert f"{path.stem}.failed-verification{path.suffix}" in names_in(tmp_path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("here", "gpu", "targets", "compared"),
    [
        ("Orin (SM 8.7)", "Orin (SM 8.7)", [], True),
        ("Orin (SM 8.7)", None, ["8.6", "8.7"], True),
        ("Orin (SM 8.7)", None, ["8.6"], False),
        ("Orin (SM 8.7)", None, [], False),
        (None, "Orin (SM 8.7)", ["8.7"], False),
    ],
)
def test_an_engine_is_compared_with_its_onnx_file_where_it_runs(
    tmp_path, monkeypatch, here, gpu, targets, compared
):
    source, path, opened = tmp_path / "net.onnx", tmp_path / "net.plan", []
    shapes = {name: [1, 3, 1, 1] for name in ("min", "opt", "max")}
    path.write_bytes(b"engine")
    write_sidecar(path, Sidecar("0" * 64, "0" * 64, "any", "1", gpu, targets, "fp16", shapes))

    def open_network(path, **options):
        opened.append((path, options))
        return SimpleNamespace(run=lambda batch: {"embedding": batch.reshape(len(batch), -1)})

    monkeypatch.setattr(verify_module, "gpu_name", lambda: here)
    monkeypatch.setattr(runtimes, "open", open_network)

    found = verify_engine(source, path, np.ones((2, 3, 1, 1), np.float32))

    if not compared:
        assert found is None
        assert not opened
    else:
        assert (found.precision, found.images, found.passed) == ("fp16", 2, True)
        assert opened == [(source, {}), (path, {"made_from": source, "trust_engine": True})]


def test_what_is_not_verified_is_refused_before_anything_runs():
    with pytest.raises(ExportError, match="unknown precision 'fp8'") as caught:
        verify(None, None, np.ones((1, 3, 1, 1)), precision="fp8")
    with pytest.raises(ExportError, match="no images"):
        verify(None, None, np.ones((0, 3, 1, 1)))

    assert all(name in caught.value.hint for name in TOLERANCES)


def test_an_export_that_does_not_agree_is_an_error_and_is_put_aside(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    failed = proof(agreement("maps", passed=False, relative_error=1.0))
    monkeypatch.setattr(verify_module, "verify_onnx", lambda *_: failed)
    monkeypatch.setattr("exporters.locate.first_departing_layer", lambda *_, **__: None)

    with pytest.raises(VerificationFailed):
        export_and_verify(
            torch.nn.Conv2d(3, 4, 1).eval(), tmp_path / "net.onnx", np.ones((1, 3, 8, 8), "f4")
        )

    assert names_in(tmp_path) == ["net.failed-verification.onnx"]


def test_an_export_takes_any_number_of_images_of_one_size_unless_asked(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "net.onnx"

    export_and_verify(torch.nn.Conv2d(3, 4, 1).eval(), path, np.ones((2, 3, 16, 8), np.float32))

    [taken] = onnx_info(path).inputs
    assert not isinstance(taken.shape[0], int)
    assert list(taken.shape[1:]) == [3, 16, 8]


def test_what_is_asked_of_an_export_is_in_the_file(tmp_path):
    torch = pytest.importorskip("torch")
    path, images = tmp_path / "net.onnx", np.ones((2, 3, 16, 8), np.float32)

    written, proven = export_and_verify(
        torch.nn.Conv2d(3, 4, 1).eval(), path, images,
        dynamic_batch=False, dynamic_size=True, output_names=["maps"], metadata={"kind": "test"},
    )  # fmt: skip

    info = onnx_info(path)
    assert (written.path, proven.images) == (path, 2)
    assert [output.name for output in info.outputs] == ["maps"]
    assert info.metadata["kind"] == "test"
    [taken] = info.inputs
    assert list(taken.shape[:2]) == [1, 3]
    assert not [side for side in taken.shape[2:] if isinstance(side, int)]
