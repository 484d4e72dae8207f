"""The `triton` bundle, read by Triton's own protobuf and queried over its own protocol."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from exporters import runtimes
from exporters.onnx_info import onnx_info
from hgkd_edge.bundles.triton import model_config
from hgkd_edge.predict import predict
from tests.bundles.conftest import Deployed
from tests.bundles.helpers import TASKS, real_images

grpc = pytest.importorskip("grpc")
pytest.importorskip("tritonclient.grpc")
from google.protobuf import text_format  # noqa: E402
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc  # noqa: E402

TYPES = {"TYPE_FP32": "float32", "TYPE_UINT8": "uint8", "TYPE_INT32": "int32"}
WIRE = {"FP32": np.float32, "UINT8": np.uint8}


def parsed(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def tensors(config: Any, batched: bool) -> dict[str, tuple[str, list[int]]]:
    """Type and shape by name, -1 for a free axis, the batch included."""
    free = [-1] if batched else []
    return {
        tensor.name: (
            TYPES[model_config_pb2.DataType.Name(tensor.data_type)],
            free + list(tensor.dims),
        )
        for tensor in (*config.input, *config.output)
    }


def stated(file: Path) -> dict[str, tuple[str, list[int]]]:
    """The same of an ONNX file, read with onnx itself."""
    graph = onnx.load(str(file)).graph
    return {
        value.name: (
            str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
            [axis.dim_value or -1 for axis in value.type.tensor_type.shape.dim],
        )
        for value in (*graph.input, *graph.output)
    }


@pytest.mark.parametrize("task", TASKS)
def test_the_configuration_is_tritons_and_agrees_with_the_onnx_file(
    task: str, deployed: Callable[[str], Deployed]
) -> None:
    home = deployed(task).folder("triton") / "models" / "my-run"

    config = parsed((home / "config.pbtxt").read_text())

    assert config.name == home.name
    assert config.backend == "onnxruntime"
    assert config.max_batch_size == 16
    assert config.HasField("dynamic_batching")
    assert tensors(config, batched=True) == stated(home / "1" / config.default_model_filename)
    labels = [output.label_filename for output in config.output]
    assert labels == (["labels.txt"] if task == "classify" else [""] * len(labels))
    settings = json.loads((deployed(task).folder("triton") / "model.json").read_text())
    assert (home / "labels.txt").read_text().splitlines() == settings["classes"]


@pytest.mark.parametrize("fixed", ["batch", "suppressed boxes"])
def test_requests_are_joined_only_where_every_tensor_begins_with_the_same_free_axis(
    fixed: str, deployed: Callable[[str], Deployed]
) -> None:
    file = deployed("detect").folder("triton") / "models" / "my-run" / "1" / "model.onnx"
    info = onnx_info(file)
    if fixed == "batch":
        ends = [replace(t, shape=(1, *t.shape[1:])) for t in (*info.inputs, *info.outputs)]
        info = replace(info, inputs=tuple(ends[:1]), outputs=tuple(ends[1:]))
    else:
        boxes = replace(info.outputs[0], name="detections", shape=("found", 7))
        info = replace(info, outputs=(boxes,))

    config = parsed(model_config("net", info, labeled=False, largest_batch=16))

    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    size = 1 if fixed == "batch" else -1
    assert list(config.input[0].dims) == [size, 3, 64, 96]
    assert config.output[0].dims[0] == size


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Speaks Triton's protocol and computes with ONNX Runtime."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        config = parsed((self.repository / request.name / "config.pbtxt").read_text())
        answer = service_pb2.ModelMetadataResponse(name=request.name)
        for output in config.output:
            answer.outputs.add(name=output.name, datatype="FP32", shape=[-1, *output.dims])
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:
        session = runtimes.open(self.repository / request.model_name / "1" / "model.onnx")
        feeds = {
            one.name: np.frombuffer(raw, WIRE[one.datatype]).reshape(list(one.shape))
            for one, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        names = [output.name for output in request.outputs]
        computed = session.infer(feeds)
        answer = service_pb2.ModelInferResponse(model_name=request.model_name)
        for name, array in ((name, computed[name]) for name in names):
            answer.outputs.add(name=name, datatype="FP32", shape=array.shape)
            answer.raw_output_contents.append(array.tobytes())
        return answer


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """Serves a model repository; returns host and port."""
    server = grpc.server(futures.ThreadPoolExecutor(1))

    def begin(repository: Path) -> str:
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Server(repository), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return f"127.0.0.1:{port}"

    yield begin
    server.stop(None)


@pytest.mark.parametrize("task", ["classify", "detect"])
def test_the_client_gives_the_answers_of_predict(
    task: str,
    deployed: Callable[[str], Deployed],
    serve: Callable[[Path], str],
    run_script: Callable[..., list[dict[str, Any]]],
    photos: Path,
    tmp_path: Path,
) -> None:
    folder = deployed(task).folder("triton")
    images = real_images(task, photos)[:3]

    address = serve(folder / "models")
    theirs = run_script(folder / "client.py", *images, "--url", address, "--threshold", "0.1")

    model = folder / "models" / "my-run" / "1" / "model.onnx"
    ours = predict(model, images, tmp_path, threshold=0.1)
    kind = {"classify": "labels", "detect": "boxes"}[task]
    assert [json.dumps(record[kind]) for record in theirs] == [
        json.dumps(one.found.to_dict()[kind]) for one in ours
    ]


def test_the_client_names_a_damaged_file_and_answers_the_others(
    deployed: Callable[[str], Deployed], serve: Callable[[Path], str], photos: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    folder = deployed("classify").folder("triton")
    files = [broken, real_images("classify", photos)[0]]

    command = [sys.executable, folder / "client.py", *files, "--url", serve(folder / "models")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    first, second = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 1
    assert "cannot identify" in first["error"]
    assert "labels" in second


def test_a_server_that_does_not_answer_is_one_line(deployed: Callable[[str], Deployed]) -> None:
    folder = deployed("classify").folder("triton")

    command = [sys.executable, folder / "client.py", "photo.jpg", "--url", "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the server at 127.0.0.1:1: ")
