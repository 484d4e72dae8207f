"""A network is all of its files: one digest, one size, and none from outside its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters.errors import ExportError
from exporters.network_files import network_digest, network_files, network_size, renamed_files
from exporters.onnx_info import onnx_info, read_onnx
from exporters.runtimes.openvino import OpenVinoSession
from exporters.runtimes.ort import OrtSession
from hgkd_edge.bench.models import resolve_models
from hgkd_edge.errors import RunError
from hgkd_edge.task_model import open_task_model


def save(path: Path, *, seed: int = 0, location: str | None = "net.onnx.data") -> Path:
    """x f32[batch, 3, 8, 8] -> Conv -> y, the weights in `location`, or inside when None."""
    kernel = np.random.default_rng(seed).standard_normal((4, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 6, 6])],
        [numpy_helper.from_array(kernel, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    outside = {"save_as_external_data": True, "location": location, "size_threshold": 0}
    onnx.save(model, path, **(outside if location else {}))
    return path


def move_weights(path: Path, location: str) -> None:
    """Make the file name another place for its weights."""
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    path.write_bytes(model.SerializeToString())


def test_networks_that_differ_in_their_weights_only_have_different_digests(tmp_path: Path) -> None:
    one, other = (save(tmp_path / str(seed) / "net.onnx", seed=seed) for seed in (0, 1))

    assert one.read_bytes() == other.read_bytes()
    assert onnx_info(one).sha256 != onnx_info(other).sha256
    assert onnx_info(one).sha256 == network_digest(one)
    assert onnx_info(one).size_bytes == one.stat().st_size + 4 * 3 * 9 * 4


def test_a_network_of_one_file_has_the_digest_of_that_file(tmp_path: Path) -> None:
    whole = save(tmp_path / "net.onnx", location=None)
    engine = tmp_path / "net.plan"
    engine.write_bytes(b"engine")

    for file in (whole, engine):
        assert network_files(file) == (file,)
        assert network_digest(file) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_an_openvino_network_is_its_graph_and_its_weights(tmp_path: Path) -> None:
    graph, weights = tmp_path / "net.xml", tmp_path / "net.bin"
    graph.write_text("<net/>")
    weights.write_bytes(b"one")
    before = network_digest(graph)

    weights.write_bytes(b"two")

    assert network_files(graph) == (graph, weights)
    assert network_digest(graph) != before
    assert network_size(graph) == 9


def test_weights_are_found_wherever_in_the_graph_they_are(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx")
    model = onnx.load(path, load_external_data=False)
    constant = onnx.TensorProto()
    constant.CopyFrom(model.graph.initializer[0])
    constant.external_data[0].value = "other.data"
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=constant)], "i", [], []
    )
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=inner))
    path.write_bytes(model.SerializeToString())
    (tmp_path / "other.data").write_bytes(bytes(4 * 3 * 9 * 4))

    assert [file.name for file in network_files(path)] == [
        "net.onnx",
        "other.data",
        "net.onnx.data",
    ]


@pytest.mark.parametrize(
    "location", ["../net.onnx.data", "/etc/hostname", "in/../../w", "", "link/w"]
)
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    path = save(tmp_path / "here" / "net.onnx")
    (tmp_path / "w").write_bytes(b"secret")
    (tmp_path / "here" / "link").symlink_to(tmp_path)
    move_weights(path, location)

    with pytest.raises(ExportError, match="outside its folder"):
        network_digest(path)
    with pytest.raises(ExportError):
        onnx_info(path)
    with pytest.raises(ExportError, match="outside its folder"):
        renamed_files(path, "model-0.onnx")


DOORS = {
    "exporters": read_onnx,
    "a description": onnx_info,
    "ONNX Runtime": OrtSession,
    "predict and evaluate": open_task_model,
    "bench": lambda path: resolve_models([path]),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("location", ["../secret", "{}/secret", "link", "folder/secret"])
def test_no_library_is_asked_to_open_weights_outside_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: str, location: str
) -> None:
    path = save(tmp_path / "here" / "net.onnx")
    (tmp_path / "secret").write_bytes(bytes(4 * 3 * 9 * 4))
    (tmp_path / "here" / "link").symlink_to("../secret")
    (tmp_path / "here" / "folder").symlink_to("..")
    move_weights(path, location.format(tmp_path))

    def trusting(*_: object, **__: object) -> None:
        pytest.fail("a library was handed the model")

    monkeypatch.setattr(onnx, "load_external_data_for_model", trusting)
    monkeypatch.setattr(onnxruntime, "InferenceSession", trusting)

    with pytest.raises((ExportError, RunError), match="outside its folder"):
        DOORS[door](path)


@pytest.mark.parametrize(
    ("suffix", "door"),
    [
        (".onnx", onnx_info),
        (".onnx", OrtSession),
        (".onnx", network_digest),
        (".xml", network_files),
        (".xml", OpenVinoSession),
        (".plan", network_digest),
        (".engine", network_digest),
    ],
)
def test_a_file_that_no_network_is_so_large_as_is_refused_before_it_is_read(
    tmp_path: Path, suffix: str, door: Callable[[Path], object]
) -> None:
    path = tmp_path / f"net{suffix}"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse: it takes no room on the disk
    with pytest.raises(ExportError, match=r"has 1,099,511,627,776 bytes; .* are read up to"):
        door(path)


def test_weights_that_are_read_again_and_again_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx")
    model = onnx.load(path, load_external_data=False)
    for number in range(60):
        again = model.graph.initializer.add()
        again.CopyFrom(model.graph.initializer[0])
        again.name = f"w{number}"
    path.write_bytes(model.SerializeToString())

    for door in (onnx_info, OrtSession, network_digest):
        with pytest.raises(ExportError, match=r"reads 26,352 bytes of weights from files of 432"):
            door(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("offset", "-5"),
        ("offset", "٣"),
        ("offset", "1e3"),
        ("offset", "433"),
        ("offset", ""),
        ("length", "9" * 30),
        ("length", "x"),
        ("length", "433"),
        ("length", " 4"),
    ],
)
def test_a_place_in_a_file_that_is_none_is_one_line(tmp_path: Path, key: str, value: str) -> None:
    path = save(tmp_path / "net.onnx")
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    kept = [entry for entry in tensor.external_data if entry.key != key]
    del tensor.external_data[:]
    tensor.external_data.extend(kept)
    tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())

    for door in (onnx_info, OrtSession, network_digest):
        with pytest.raises(ExportError, match=r"weight 'w' has no place in") as refused:
            door(path)

    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 500


def test_a_model_whose_names_steer_a_terminal_says_nothing_by_itself(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shape = numpy_helper.from_array(np.array([7, 7], np.int64), "s")
    node = helper.make_node("Reshape", ["x", "s"], ["y"], name="\x1b]0;owned\x07\x1b[2Jnode")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "g", [value("x", 1, ["b", 3])], [value("y", 1, [7, 7])], [shape]
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "a.onnx")
    session = OrtSession(tmp_path / "a.onnx")

    with pytest.raises(Exception, match="Reshape"):
        session.infer({"x": np.zeros((1, 3), np.float32)})

    assert capfd.readouterr() == ("", "")


def test_missing_weights_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx")
    (tmp_path / "net.onnx.data").unlink()

    with pytest.raises(ExportError, match=r"net\.onnx\.data', which is missing"):
        network_files(path)


def test_a_renamed_network_computes_the_same_without_the_old_names(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx")
    images = {"x": np.ones((1, 3, 8, 8), np.float32)}
    [wanted] = OrtSession(path).infer(images).values()

    sent = renamed_files(path, "model-0.onnx")
    for name, content in sent.items():
        data = content if isinstance(content, bytes) else content.read_bytes()
        (tmp_path / "there").mkdir(exist_ok=True)
        (tmp_path / "there" / name).write_bytes(data)

    assert list(sent) == ["model-0.onnx", "model-0.1.weights"]
    [got] = OrtSession(tmp_path / "there" / "model-0.onnx").infer(images).values()
    np.testing.assert_array_equal(got, wanted)
