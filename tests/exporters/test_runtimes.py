"""A network gives the same outputs in every runtime."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper

from exporters import ExportError, runtimes
from exporters.onnx_export import export_onnx
from exporters.openvino_export import export_openvino
from exporters.runtimes import RUNTIMES, Runtime, Session, tensorrt
from exporters.runtimes.session import in_batches
from exporters.sidecar import Sidecar
from exporters.trt_build import build_engine

torch = pytest.importorskip("torch")

SHAPE = (2, 3, 16, 16)
IMAGES = np.random.default_rng(0).normal(size=(5, *SHAPE[1:])).astype(np.float32)
Files = Callable[[Runtime], object]


class Small(torch.nn.Module):
    """Two outputs; neither is the last alphabetically or in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.conv(images).relu()
        return self.head(maps.mean((2, 3))), maps


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """One network as a module, an ONNX file, an IR and an engine."""
    torch.manual_seed(0)
    module, source = Small().eval(), tmp_path_factory.mktemp("small") / "small.onnx"
    metadata = {"hgkd_edge.task": '"test"'}
    names = ["logits", "maps"]
    export_onnx(module, source, input_size=SHAPE[1:], output_names=names, metadata=metadata)

    def file(runtime: Runtime) -> object:
        made = source.with_suffix(runtime.opens)
        if runtime.opens == ".safetensors":
            return module
        if runtime.opens == ".xml" and not made.exists():
            export_openvino(source, made, half_weights=False)
        if runtime.opens == ".plan":
            build_engine(source, made, backend=runtime.name.replace("-", "_"), max_batch=2)
        return made

    return file


def opened(name: str, files: Files, **options: object) -> Session:
    runtime = RUNTIMES[name]
    if error := runtime.missing():
        assert error.message
        pytest.skip(error.message)
    return runtimes.open(
        files(runtime), runtime=name, names=["logits", "maps"], trust_engine=True, **options
    )


every_runtime = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "torch-compile" else ())
        for name in RUNTIMES
    ],
)


@every_runtime
def test_every_runtime_gives_the_same_outputs_and_says_what_it_is(name: str, files: Files) -> None:
    module = files(RUNTIMES["torch"])
    with torch.no_grad():
        wanted = [tensor.numpy() for tensor in module(torch.from_numpy(IMAGES))]

    session = opened(name, files, threads=1)

    outputs = session.run(IMAGES)
    assert list(outputs) == ["logits", "maps"]
    for got, right in zip(outputs.values(), wanted, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, right, atol=1e-4)
    assert session.version == RUNTIMES[name].version() != ""
    assert session.runtime
    assert session.details.load_ms >= 0
    assert session.details.threads == (1 if RUNTIMES[name].uses_threads else None)
    assert session.details.computes in (None, "tf32")
    if RUNTIMES[name].opens in (".onnx", ".xml"):
        assert session.metadata["hgkd_edge.task"] == '"test"'
    session.close()


@every_runtime
@pytest.mark.parametrize("copies", ["in", "out"])
def test_what_is_timed_is_what_is_compared(name: str, files: Files, copies: str) -> None:
    session = opened(name, files, threads=1, exact=False, shapes={"images": SHAPE})
    feeds = {"images": IMAGES[: SHAPE[0]]}

    timed = session.bind(feeds, copies)

    timed()
    if copies == "in":
        found = timed()
        values = list(found.values()) if isinstance(found, dict) else found
        for got, wanted in zip(values, session.infer(feeds).values(), strict=True):
            np.testing.assert_array_equal(got, wanted)
    session.close()


@pytest.mark.parametrize("opener", ["ort-cpu", "openvino"])
def test_an_output_keeps_the_name_that_its_file_gives_it(tmp_path: Path, opener: str) -> None:
    value = partial(helper.make_tensor_value_info, elem_type=1, shape=["batch", 3, 4, 4])
    nodes = [
        helper.make_node("Relu", ["images"], ["aaa"]),  # OpenVINO gives both names to one tensor
        helper.make_node("Identity", ["aaa"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "g", [value("images")], [value("logits")])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "n.onnx")
    if error := RUNTIMES[opener].missing():
        pytest.skip(error.message)

    session = runtimes.open(tmp_path / "n.onnx", runtime=opener)

    assert list(session.run(np.ones((1, 3, 4, 4), np.float32))) == ["logits"]


def count(images: np.ndarray) -> dict[str, np.ndarray]:
    """A network that finds the number of objects encoded in each image, images numbered from 0."""
    found = images.reshape(-1).astype(int)
    rows = np.repeat(np.arange(len(found)), found)
    return {"detections": np.pad(rows[:, None], ((0, 0), (0, 6))).astype(np.float32)}


@pytest.mark.parametrize("most", [1, 2, 3, None])
def test_detections_of_a_network_of_small_batches_name_their_own_image(most: int | None) -> None:
    images = np.array([2, 0, 1, 3], np.float32).reshape(4, 1, 1, 1)

    rows = in_batches(count, 1, most)(images)["detections"]

    assert rows[:, 0].tolist() == [0, 0, 2, 3, 3, 3]


@pytest.mark.parametrize(("least", "most", "images"), [(4, 4, 6), (4, 4, 3), (2, 4, 5)])
def test_a_number_of_images_that_no_calls_add_up_to_is_refused(
    least: int, most: int, images: int
) -> None:
    with pytest.raises(ExportError, match=rf"takes batches of .* only, not {images} images"):
        in_batches(count, least, most)(np.ones((images, 1, 1, 1)))


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine of batches of 1 to 2 that numbers its detections, run by a stand-in."""
    polygraphy = pytest.importorskip("polygraphy.backend.trt")
    shapes = {name: [size, 1, 1, 1] for name, size in (("min", 1), ("opt", 1), ("max", 2))}
    sidecar = Sidecar("0" * 64, "0" * 64, "tensorrt_rtx", "1.0", None, ["9.0"], "fp32", shapes)
    dtype = SimpleNamespace(dtype=SimpleNamespace(name="float32"))
    buffer = np.zeros((9, 7), np.float32)  # its own, overwritten by the next call

    def infer(feeds: dict[str, np.ndarray], **_: object) -> dict[str, np.ndarray]:
        rows = count(feeds["images"])["detections"]
        assert len(feeds["images"]) <= 2
        buffer[: len(rows)] = rows
        return {"detections": buffer[: len(rows)]}

    runner = SimpleNamespace(
        activate=lambda: None, infer=infer, get_input_metadata=lambda: {"images": dtype}
    )
    flavor = SimpleNamespace(name="tensorrt_rtx")
    monkeypatch.setattr(tensorrt, "load_engine", lambda *_, **__: (b"", flavor, sidecar))
    monkeypatch.setattr(tensorrt, "select_for_polygraphy", lambda _flavor: None)
    monkeypatch.setattr(polygraphy, "TrtRunner", lambda _engine: runner)
    path = tmp_path / "net.plan"
    path.write_bytes(b"engine")
    return path


def test_images_beyond_an_engines_largest_batch_keep_their_numbers(engine: Path) -> None:
    session = runtimes.open(engine, trust_engine=True)

    rows = session.run(np.array([2, 0, 1, 3, 1]).reshape(5, 1, 1, 1))["detections"]

    assert rows[:, 0].tolist() == [0, 0, 2, 3, 3, 3, 4]
    assert (session.runtime, session.package) == ("TensorRT-RTX", "tensorrt_rtx")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"runtime": "tensorrt"}, "was built by tensorrt_rtx"),
        ({"shapes": {"images": (4, 1, 1, 1)}}, "takes batches of 1 to 2, not 4"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused(
    engine: Path, options: dict[str, object], expected: str
) -> None:
    with pytest.raises(ExportError, match=expected) as refused:
        runtimes.open(engine, trust_engine=True, **options)

    assert refused.value.hint


def test_an_engine_is_loaded_only_where_someone_vouches_for_it(engine: Path) -> None:
    with pytest.raises(ExportError, match="it is not recorded as built on this machine"):
        runtimes.open(engine)

    for word in ({"built_here": engine.parent}, {"trust_engine": True}):
        assert runtimes.open(engine, **word).runtime == "TensorRT-RTX"


def test_a_file_of_no_runtime_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"'.*net\.pth' is not a model file") as refused:
        runtimes.open(tmp_path / "net.pth")

    assert ".onnx" in refused.value.hint


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or os.cpu_count() == 1, reason="needs two cores"
)
def test_onnx_runtime_takes_as_many_threads_as_the_process_may_use_cores(files: Files) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        session = opened("ort-cpu", files)
    finally:
        os.sched_setaffinity(0, allowed)
    assert session.details.threads == 1
