"""The `jetson` bundle: the parts that run without a Jetson."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxruntime import InferenceSession
from PIL import Image

from hgkd_edge.predict import predict
from tests.bundles.conftest import Deployed
from tests.bundles.helpers import TASKS, real_images


@pytest.fixture
def jetson(
    deployed: Callable[[str], Deployed], device_programs: Callable[[Path], None]
) -> Callable[[str], Path]:
    """A task's bundle, its programs importable by their plain names."""

    def use(task: str) -> Path:
        folder = deployed(task).folder("jetson")
        device_programs(folder)
        return folder

    return use


class Camera:
    """What `cv2.VideoCapture` offers: image files, one frame after the other, blue first."""

    def __init__(self, files: list[Path]) -> None:
        self.files: Iterator[Path] = iter(files)
        self.released = False

    def isOpened(self) -> bool:
        return True

    def read(self) -> tuple[bool, Any]:
        file = next(self.files, None)
        if file is None:
            return False, None
        return True, np.asarray(Image.open(file).convert("RGB"))[:, :, ::-1]

    def release(self) -> None:
        self.released = True


@pytest.mark.parametrize("task", TASKS)
def test_the_loop_answers_frames_as_predict_answers_the_same_images(
    task: str, jetson: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    folder = jetson(task)
    camera, capture, script = map(importlib.import_module, ("camera", "capture_opencv", "predict"))
    files, settings = real_images(task, photos), script.load_settings(folder)
    eye, seen = Camera(files), []

    result = camera.watch(
        capture.frames("0", eye),
        settings,
        camera.open_model(folder),
        threshold=0.1,
        show=lambda number, frame, answered: seen.append(answered),
    )

    ours = predict(folder / "model.onnx", files, tmp_path, threshold=0.1)
    kind = {"classify": "labels", "segment": "shares", "detect": "boxes"}[task]
    wanted = [one.found.to_dict() for one in ours]
    assert [_listed(one[kind]) for one in seen] == [_listed(one[kind]) for one in wanted]
    assert result["frames"] == len(files)
    stages = sum(result[f"{stage}_ms"] for stage in camera.STAGES)
    assert 0 < stages <= 1000 / result["fps"]
    assert eye.released


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(one) for key, one in value.items()}
    return [_listed(one) for one in value] if isinstance(value, list | tuple) else value


def test_the_loop_stops_where_it_should_and_gives_the_camera_back(
    jetson: Callable[[str], Path], photos: Path
) -> None:
    folder = jetson("classify")
    camera, capture, script = map(importlib.import_module, ("camera", "capture_opencv", "predict"))
    eye = Camera(real_images("classify", photos))
    settings = script.load_settings(folder)

    frames = capture.frames("0", eye)
    result = camera.watch(
        frames, settings, camera.open_model(folder), threshold=0, show=lambda *_: None, count=2
    )
    frames.close()

    assert result["frames"] == 2
    assert eye.released


def test_ctrl_c_ends_a_camera_with_the_summary(
    jetson: Callable[[str], Path],
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    jetson("classify")
    camera, capture = map(importlib.import_module, ("camera", "capture_opencv"))

    def frames(source: str) -> Iterator[Image.Image]:
        yield Image.open(real_images("classify", photos)[0]).convert("RGB")
        raise KeyboardInterrupt

    monkeypatch.setattr(capture, "frames", frames)
    code = camera.main(["0", "--via", "opencv"])

    summary = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert code == 0
    assert summary["frames"] == 1
    assert summary["infer_ms"] > 0


def test_real_opencv_reads_a_folder_of_images(
    jetson: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    pytest.importorskip("cv2")
    jetson("classify")
    capture = importlib.import_module("capture_opencv")
    files = real_images("classify", photos)[:3]
    for number, file in enumerate(files):
        Image.open(file).convert("RGB").resize((64, 48)).save(tmp_path / f"{number:03d}.png")

    frames = list(capture.frames(str(tmp_path / "%03d.png")))

    assert len(frames) == 3
    for number, frame in enumerate(frames):
        wanted = np.asarray(Image.open(tmp_path / f"{number:03d}.png"))
        np.testing.assert_array_equal(np.asarray(frame), wanted)
    with pytest.raises(RuntimeError, match="OpenCV cannot open"):
        next(capture.frames(str(tmp_path / "none.mp4")))


# GStreamer


@pytest.mark.parametrize(
    ("source", "first", "key", "value"),
    [
        ("csi:1", "nvarguscamerasrc", "sensor-id", 1),
        ("/dev/video2", "v4l2src", "device", "/dev/video2"),
        ("rtsp://camera/a b", "uridecodebin", "uri", "rtsp://camera/a b"),
        ("/videos/a b.mp4", "uridecodebin", "uri", "file:///videos/a%20b.mp4"),
    ],
)
def test_a_source_is_set_as_a_property_and_never_quoted(
    source: str, first: str, key: str, value: Any, jetson: Callable[[str], Path]
) -> None:
    jetson("classify")
    capture = importlib.import_module("capture_gstreamer")

    text = capture.pipeline(source, jetson=True, width=1280, height=720, rate=30)

    assert text.startswith(f"{first} name=source")
    assert capture.source_property(source) == (key, value)
    assert source.removeprefix("csi:") not in text or source.startswith("csi:")
    assert "format=RGB ! appsink name=sink" in text
    # A file is answered frame by frame; for a camera only the newest frame counts.
    assert ("drop=true" in text) == (not source.endswith(".mp4"))


@pytest.mark.parametrize("width", [4, 5, 6, 7])
def test_rows_of_a_gstreamer_buffer_are_cut_at_the_image(
    width: int, jetson: Callable[[str], Path]
) -> None:
    jetson("classify")
    capture = importlib.import_module("capture_gstreamer")
    pixels = np.random.default_rng(0).integers(0, 255, (3, width, 3), np.uint8)
    stride = -(-3 * width // 4) * 4
    rows = np.full((3, stride), 255, np.uint8)
    rows[:, : 3 * width] = pixels.reshape(3, -1)

    image = capture.image_of(rows.tobytes(), width, 3)

    np.testing.assert_array_equal(np.asarray(image), pixels)


def gstreamer(arriving: list[Any], error: str = "") -> tuple[types.ModuleType, list[str]]:
    """A `gi` whose pipeline returns these frames, None for a frame that does not arrive in time.

    Returns:
        The module, and the states that the pipeline is put in.
    """
    states: list[str] = []
    queue = iter(arriving)
    seen: dict[str, Any] = {"eos": False}

    class Sample:
        def __init__(self, pixels: np.ndarray) -> None:
            self.height, self.width = pixels.shape[:2]
            rows = np.zeros((self.height, -(-3 * self.width // 4) * 4), np.uint8)
            rows[:, : 3 * self.width] = pixels.reshape(self.height, -1)
            self.data = rows.tobytes()

        def get_caps(self) -> Any:
            values = {"width": self.width, "height": self.height}
            form = types.SimpleNamespace(get_value=values.get)
            return types.SimpleNamespace(get_structure=lambda index: form)

        def get_buffer(self) -> Any:
            return types.SimpleNamespace(
                get_size=lambda: len(self.data), extract_dup=lambda a, b: self.data[a:b]
            )

    def emit(signal: str, timeout: int) -> Any:
        assert (signal, timeout) == ("try-pull-sample", 10**9)
        pixels = next(queue, "end")
        seen["eos"] = isinstance(pixels, str) and not error
        return Sample(pixels) if isinstance(pixels, np.ndarray) else None

    def pop_filtered(kind: str) -> Any:
        failed = bool(error)
        reason = types.SimpleNamespace(message=error)
        return types.SimpleNamespace(parse_error=lambda: (reason, "")) if failed else None

    parts = {
        "source": types.SimpleNamespace(set_property=lambda key, value: seen.update({key: value})),
        "sink": types.SimpleNamespace(emit=emit, get_property=seen.get),
    }
    pipeline = types.SimpleNamespace(
        get_by_name=parts.get,
        set_state=states.append,
        get_bus=lambda: types.SimpleNamespace(pop_filtered=pop_filtered),
    )
    module: Any = types.ModuleType("gi")
    module.require_version = lambda name, version: None
    module.repository = types.ModuleType("gi.repository")
    module.repository.Gst = types.SimpleNamespace(
        SECOND=10**9,
        init=lambda arguments: None,
        ElementFactory=types.SimpleNamespace(find=lambda name: None),
        parse_launch=lambda text: pipeline,
        State=types.SimpleNamespace(PLAYING="playing", NULL="stopped"),
        MessageType=types.SimpleNamespace(ERROR="error"),
    )
    return module, states


@pytest.mark.parametrize("error", ["", "no such camera"])
def test_gstreamers_frames_come_until_the_end_or_an_error(
    error: str, jetson: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    jetson("classify")
    capture = importlib.import_module("capture_gstreamer")
    pixels = np.random.default_rng(0).integers(0, 255, (2, 4, 5, 3), np.uint8)
    module, states = gstreamer([pixels[0], None, pixels[1]], error)
    monkeypatch.setitem(sys.modules, "gi", module)
    monkeypatch.setitem(sys.modules, "gi.repository", module.repository)
    seen = []

    def take() -> None:
        for frame in capture.frames("video.mp4"):
            seen.append(np.asarray(frame))

    if error:
        with pytest.raises(RuntimeError, match="GStreamer: no such camera"):
            take()
    else:
        take()
        np.testing.assert_array_equal(seen, pixels)
    assert states == ["playing", "stopped"]


# The engine


def test_trtexec_is_given_the_precision_in_each_versions_own_way(
    jetson: Callable[[str], Path], tmp_path: Path
) -> None:
    jetson("classify")
    build = importlib.import_module("build_engine")
    settings = {"dynamic_batch": True, "input_name": "images", "size": [64, 96]}

    def flags(precision: str, banner: str) -> set[str]:
        version = build.version_of(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{banner}] # trtexec")
        given = build.arguments({**settings, "precision": precision}, version, tmp_path)
        assert "--optShapes=images:1x3x64x96" in given
        return set(given[5:])

    assert flags("fp32", "8502") == {"--buildOnly"}  # JetPack 5
    assert flags("fp16", "8502") == {"--fp16", "--buildOnly"}
    assert flags("int8", "8602") == {"--int8", "--fp16", "--skipInference"}  # JetPack 6.0
    assert flags("fp16", "100300") == {"--stronglyTyped", "--skipInference"}  # JetPack 6.2
    assert flags("int8", "101600") == {"--stronglyTyped", "--skipInference"}  # JetPack 7.2
    assert flags("fp16", "110000") == {"--skipInference"}
    with pytest.raises(RuntimeError, match="does not report its version"):
        build.version_of("command not found")


def test_a_trtexec_that_does_not_run_is_one_line(
    jetson: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    jetson("classify")
    build = importlib.import_module("build_engine")
    trtexec = tmp_path / "trtexec"
    trtexec.write_text("#!/bin/sh\necho libnvinfer.so.10: cannot open shared object file\n")
    trtexec.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    assert build.main() == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: trtexec does not report its version")


@pytest.mark.parametrize("version", [(8, 5), (8, 6), (10, 3), (11, 0)])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_device_builds_with_the_flags_that_bench_builds_with(
    version: tuple[int, int], precision: str, jetson: Callable[[str], Path], tmp_path: Path
) -> None:
    from hgkd_edge.bench.edge.trtexec import Engine, Trtexec

    jetson("classify")
    build = importlib.import_module("build_engine")
    known = {"--stronglyTyped"} if version >= (10,) else set()
    known |= {"--skipInference"} if version >= (8, 6) else {"--buildOnly"}
    settings = {
        "dynamic_batch": True, "input_name": "images", "size": [64, 64], "precision": precision,
    }  # fmt: skip

    tool, shapes = Trtexec((*version, 0), frozenset(known)), {"images": (1, 3, 64, 64)}
    ours = Engine(tool, "net.onnx", "net.plan", shapes, dynamic=True).build(precision, precision)

    theirs = build.arguments(settings, version, tmp_path)
    assert [flag for flag in theirs if not flag.startswith(("--onnx", "--save"))] == [
        flag for flag in ours if not flag.startswith(("--onnx", "--save"))
    ]


class Cudart:
    """CUDA's runtime library on the host's memory."""

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}

    def cudaMalloc(self, address: Any, size: Any) -> int:
        block = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(block)
        self.blocks[ctypes.addressof(block)] = block
        return 0

    def cudaFree(self, address: Any) -> int:
        del self.blocks[address.value]
        return 0

    def cudaMemcpy(self, target: Any, source: Any, size: Any, kind: Any) -> int:
        ctypes.memmove(target.value, source.value, size.value)
        return 0


def tensorrt_on(onnx: Path) -> types.ModuleType:
    """A module with the parts of TensorRT's Python API that `engine.py` uses; ONNX Runtime runs."""
    session = InferenceSession(str(onnx))
    inputs, outputs = session.get_inputs(), session.get_outputs()
    names = [one.name for one in (*inputs, *outputs)]

    class Context:
        def __init__(self) -> None:
            self.addresses: dict[str, int] = {}
            self.shape: tuple[int, ...] = ()

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
            self.shape = tuple(shape)

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            free = next(one.shape for one in outputs if one.name == name)
            return (self.shape[0], *free[1:])

        def set_tensor_address(self, name: str, address: int) -> None:
            self.addresses[name] = address

        def execute_async_v3(self, stream: int) -> bool:
            size = int(np.prod(self.shape)) * 4
            raw = ctypes.string_at(self.addresses[inputs[0].name], size)
            batch = np.frombuffer(raw, np.float32).reshape(self.shape)
            for one, array in zip(outputs, session.run(None, {inputs[0].name: batch}), strict=True):
                data = np.ascontiguousarray(array)
                ctypes.memmove(self.addresses[one.name], data.ctypes.data, data.nbytes)
            return True

    module: Any = types.ModuleType("tensorrt")
    module.Logger = type("Logger", (), {"WARNING": 2, "__init__": lambda self, level: None})
    module.TensorIOMode = types.SimpleNamespace(INPUT=1, OUTPUT=2)
    module.nptype = lambda dtype: np.bool  # as in TensorRT 8.5: numpy 1.24 and later lack it
    engine = types.SimpleNamespace(
        num_io_tensors=len(names),
        get_tensor_name=lambda i: names[i],
        get_tensor_mode=lambda name: 1 if name == names[0] else 2,
        get_tensor_dtype=lambda name: types.SimpleNamespace(name="FLOAT"),
        create_execution_context=Context,
    )
    module.Runtime = lambda logger: types.SimpleNamespace(
        deserialize_cuda_engine=lambda data: engine if data == b"engine" else None
    )
    return module


def test_an_engine_is_fed_and_read_through_cudas_memory(
    jetson: Callable[[str], Path],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = jetson("detect")
    engine, script = map(importlib.import_module, ("engine", "predict"))
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_on(folder / "model.onnx"))
    plan, library = tmp_path / "model.plan", Cudart()
    plan.write_bytes(b"engine")
    settings = script.load_settings(folder)

    run = engine.Engine(plan, engine.Cuda(library))

    plain = script.open_onnx(folder / "model.onnx")
    images = [script.load_image(file) for file in real_images("detect", photos)[:2]]
    batches = [script.network_input(settings, image) for image in images]
    for batch in (batches[0], np.concatenate(batches), batches[1]):  # grows, then shrinks
        got, wanted = run(batch), plain(batch)
        assert got.keys() == wanted.keys()
        assert all(np.array_equal(got[name], wanted[name]) for name in wanted)
    assert len(library.blocks) == 3  # one for each tensor, for any batches
    plan.write_bytes(b"of another version")
    with pytest.raises(RuntimeError, match="build it again with build_engine.py"):
        engine.Engine(plan, engine.Cuda(library))
