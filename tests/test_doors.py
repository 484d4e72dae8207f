"""The threat model of docs/security.md, door by door: what a stranger or a device sends is fuzzed.

Each parser gets valid content with generated damage. It reads it or raises its documented error,
within a second of processor time and 1 GB (weights: ten seconds). Text of any length:
`tests/test_long_input.py`; images, annotations, tables and shards:
`tests/data/test_corruptions.py`; recipes, records and options: `tests/test_bad_settings.py`; links,
pipes and swapped files in a run: `tests/test_hostile_run.py`; whole sessions with a hostile device:
`tests/bench/edge/test_hostile_device.py`; sockets that nobody asked for: `tests/test_faults.py`.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import itertools
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from exporters.network_files import network_digest
from exporters.onnx_info import onnx_info
from exporters.openvino_export import export_openvino
from exporters.runtimes.ort import OrtSession
from exporters.sidecar import Sidecar, read_sidecar
from hgkd_edge.bench.edge.facts import clock_warnings, machine_of
from hgkd_edge.bench.edge.hosts import _understood
from hgkd_edge.bench.edge.messages import MessageStream, StreamFault
from hgkd_edge.bench.edge.tegrastats import parse_line
from hgkd_edge.bench.edge.trtexec import Trtexec, parse_log, parse_outputs, parse_times
from hgkd_edge.bench.inputs import load_images
from hgkd_edge.data.images import open_image
from hgkd_edge.data.input_spec import InputSpec
from hgkd_edge.data.orientation import turn_of
from hgkd_edge.data.sources import open_splits
from hgkd_edge.errors import UserError
from hgkd_edge.models.backbone import BackboneSpec, create_features, read_backbone, save_backbone
from hgkd_edge.models.third_party_weights import fitting_weights
from hgkd_edge.parsing import parse_json, parse_yaml
from hgkd_edge.recipe import Recipe, builtin_recipes, load_recipe
from hgkd_edge.recipe_sections import DataConfig
from hgkd_edge.rundir import RunDir
from hgkd_edge.task_model import open_task_model
from hgkd_edge.tasks.answers import load_photo
from hgkd_edge.tasks.base import ModelCard, read_model, save_model
from hgkd_edge.tasks.classify import Classification
from hgkd_edge.tasks.config import FinetuneConfig
from tests.bench.conftest import build_convnet
from tests.bench.edge.test_facts import facts_of_a_jetson
from tests.damage import BINARY, TEXT, VALUES, bounded, damaged, within
from tests.fuzzing import ANYTHING, EXAMPLES, argv, changed, fuzz, refused_or_read
from tests.test_comparison import FILES, add_file, keep, measure

LINES = st.text(max_size=120) | st.sampled_from(VALUES)
TEGRASTATS = (
    "RAM 2448/7471MB (lfb 2x4MB) SWAP 0/3735MB CPU [12%@1190,off,3%@1190] EMC_FREQ 1%@2133 "
    "GR3D_FREQ 99%@624 GPU@46C CPU@48.5C VDD_IN 4960mW/4960mW VDD_CPU_GPU_CV 1003mW/990mW"
)
TIMES = [
    {
        "startH2dMs": s,
        "startComputeMs": s + 1,
        "endD2hMs": s + 8,
        "computeMs": 5.0,
        "latencyMs": 8.0,
    }
    for s in (0.0, 10.0, 200.0, 210.0)
]
OUTPUTS = [{"name": "y", "dimensions": "1x3", "values": [0.1, 0.2, 0.7]}]


TRTEXEC = """&&&& RUNNING TensorRT.trtexec [TensorRT v8602] # /usr/src/tensorrt/bin/trtexec
[12/06/2022-15:00:20] [I] Data transfers: Enabled
[12/06/2022-15:00:20] [I] Engine built in 93.2 sec.
[12/06/2022-15:00:20] [I] Engine deserialized in 0.0112 sec.
[12/06/2022-15:00:20] [I] Warmup completed 2 queries over 2000 ms
[12/06/2022-15:00:20] [I] Latency: min = 0.56 ms, max = 5.9e-1 ms, median = 0.572998 ms
[12/06/2022-15:00:20] [I] GPU Compute Time: min = 0.55 ms, median = 0.564087 ms
[12/06/2022-15:00:20] [W] * GPU compute time is unstable, with coefficient of variance = 2.31%.
"""


def as_bench_does(read: Callable[[], object]) -> UserError | None:
    """What cannot be read is an error of that device."""

    def reading() -> None:
        with _understood("the device"):
            read()

    return refused_or_read(reading)


@given(seed=st.integers(0, 2**32), text=LINES)
@fuzz(50)
def test_telemetry_of_a_device(seed: int, text: str) -> None:
    for line in (text, damaged(TEGRASTATS.encode(), TEXT, seed).decode(errors="replace")):
        refused_or_read(lambda line=line: parse_line(line))  # type: ignore[misc]


@given(seed=st.integers(0, 2**32), text=LINES)
@fuzz(100)
def test_words_of_trtexec(seed: int, text: str) -> None:
    for log in (text, damaged(TRTEXEC.encode(), TEXT, seed).decode(errors="replace")):
        as_bench_does(lambda log=log: parse_log(log.splitlines()))  # type: ignore[misc]
        as_bench_does(lambda log=log: Trtexec.from_help(log))  # type: ignore[misc]


@pytest.mark.parametrize("number", ["1.2.3", "..", "9" * 5000])
def test_a_number_of_trtexec_that_is_none(number: str) -> None:
    for right in ("0.572998", "93.2", "0.0112"):
        log = TRTEXEC.replace(right, number).splitlines()
        assert as_bench_does(lambda log=log: parse_log(log))  # type: ignore[misc]


@given(content=changed(TIMES), outputs=changed(OUTPUTS))
@fuzz(50)
def test_times_and_outputs_of_a_device(content: Any, outputs: Any) -> None:
    refused_or_read(lambda: parse_times(json.dumps(content), copies="in", warmup_ms=100))
    as_bench_does(lambda: parse_outputs(json.dumps(outputs)))


MARK = b"@hgkd-edge 0123456789abcdef "


def sent(name: str, text: str) -> bytes:
    """A message as `device.sh` sends it."""
    packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    lines = [*(packed[at : at + 60] for at in range(0, len(packed), 60)), "."]
    return b"".join(MARK + f"{name} {line}\n".encode() for line in lines)


STREAM = b"Welcome\r\n" + sent("facts", "free\n9 9 9") + b"\x1b[0m" + sent("done", "0 0 1\n" * 40)


def messages(stream: bytes, pieces: int) -> list[tuple[str, str]]:
    """What arrives of a stream that comes in pieces of this size."""
    parser = MessageStream(MARK)
    chunks = (stream[at : at + pieces] for at in range(0, len(stream), pieces))
    return [message for chunk in chunks for message in parser.feed(chunk)]


@pytest.mark.parametrize("pieces", [1, 7, 4096])
def test_the_stream_that_is_damaged_below_is_whole(pieces: int) -> None:
    assert messages(STREAM, pieces) == [("facts", "free\n9 9 9"), ("done", "0 0 1\n" * 40)]


@given(seed=st.integers(0, 2**32), pieces=st.integers(1, 300))
@fuzz(100)
def test_a_damaged_stream_of_messages(seed: int, pieces: int) -> None:
    stream = damaged(STREAM, (*BINARY, *TEXT), seed)

    with bounded(2), contextlib.suppress(StreamFault):
        for name, text in messages(stream, pieces):
            assert len(name) <= 40
            assert all(each.isprintable() or each.isspace() for each in text)


@given(seed=st.integers(0, 2**32), text=LINES, data=st.data())
@fuzz(50)
def test_facts_of_a_device(seed: int, text: str, data: st.DataObject) -> None:
    facts = facts_of_a_jetson()
    name = data.draw(st.sampled_from(sorted(facts)))
    for bad in (text, damaged(facts[name].encode(), TEXT, seed).decode(errors="replace")):
        refused_or_read(lambda bad=bad: clock_warnings(machine_of({**facts, name: bad})))  # type: ignore[misc]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("doors")


def described(**more: Any) -> bytes:
    """An ONNX model as `export` describes it."""
    stated = {
        **{"task": "classify", "classes": ["a", "b"], "input_size": [3, 8, 8]},
        **{"mean": [0.5] * 3, "std": [0.5] * 3, **more},
    }
    metadata = {f"hgkd_edge.{key}": json.dumps(value) for key, value in stated.items()}
    return build_convnet(layers=1, side=8, metadata=metadata).SerializeToString()


def test_the_model_that_is_damaged_below_is_whole(folder: Path) -> None:
    (folder / "whole.onnx").write_bytes(described())

    assert open_task_model(folder / "whole.onnx").classes == ("a", "b")


@pytest.mark.parametrize("text", [b"classify", b"features"])  # in the metadata; an output's name
def test_an_onnx_file_with_text_that_is_none(folder: Path, text: bytes) -> None:
    file = folder / "net.onnx"
    file.write_bytes(described().replace(text, b"\xe5" + text[1:]))

    refused_or_read(lambda: onnx_info(file))
    assert refused_or_read(lambda: open_task_model(file)) is not None
    assert refused_or_read(lambda: OrtSession(file)) is not None


@pytest.mark.parametrize("of", ["an operator", "a node", "an input"])
def test_an_onnx_file_with_a_vast_name_that_looks_like_a_place_in_source_code(
    folder: Path, of: str
) -> None:
    model, name = onnx.load_from_string(described()), "/a.cc:1 " * 5000
    if of == "an operator":
        model.graph.node[0].op_type = name
    elif of == "a node":
        model.graph.node[0].name, model.graph.node[0].op_type = name, "Unknown"
    else:
        model.graph.node[0].input[0] = name
    file = folder / "net.onnx"
    file.write_bytes(model.SerializeToString())

    assert refused_or_read(lambda: OrtSession(file)) is not None


def test_an_onnx_file_for_images_of_another_size(folder: Path) -> None:
    file = folder / "net.onnx"
    file.write_bytes(described())

    error = refused_or_read(lambda: OrtSession(file).run(np.zeros((1, 3, 9, 9), np.float32)))

    assert error is not None
    assert "ONNX Runtime cannot run the network on these inputs" in error.message


@given(seed=st.integers(0, 2**32))
@fuzz(30)
def test_a_damaged_onnx_file(folder: Path, seed: int) -> None:
    file = folder / "net.onnx"
    file.write_bytes(damaged(described(), BINARY, seed))

    refused_or_read(lambda: onnx_info(file))
    refused_or_read(lambda: network_digest(file))
    refused_or_read(lambda: open_task_model(file))


@given(data=st.data())
@fuzz(20)
def test_metadata_of_an_onnx_file(folder: Path, data: st.DataObject) -> None:
    key = data.draw(
        st.sampled_from(("task", "classes", "input_size", "mean", "std", "baked", "frame"))
    )
    file = folder / "net.onnx"
    file.write_bytes(described(**{key: data.draw(ANYTHING)}))

    refused_or_read(lambda: open_task_model(file))


@pytest.fixture(scope="module")
def openvino_file(folder: Path) -> Path:
    pytest.importorskip("openvino")
    (folder / "whole.onnx").write_bytes(described())
    export_openvino(folder / "whole.onnx", folder / "whole.xml")
    assert open_task_model(folder / "whole.xml").classes == ("a", "b")
    return folder / "whole.xml"


@given(seed=st.integers(0, 2**32))
@fuzz(30)
def test_a_damaged_openvino_file(openvino_file: Path, seed: int) -> None:
    file = openvino_file.with_name("net.xml")
    file.write_bytes(damaged(openvino_file.read_bytes(), TEXT, seed))
    file.with_suffix(".bin").write_bytes(openvino_file.with_suffix(".bin").read_bytes())

    refused_or_read(lambda: network_digest(file))
    refused_or_read(lambda: open_task_model(file))


SPEC = BackboneSpec("resnet18", 2, (64, 64), (0.5,) * 3, (0.5,) * 3, {"channels": [8, 8, 8, 8]})


@pytest.fixture(scope="module")
def weights(folder: Path) -> tuple[Path, Path]:
    features = create_features(SPEC.name, stem_stride=2, args=SPEC.args)
    save_backbone(features, SPEC, folder / "whole.safetensors")
    save_model(features, ModelCard("classify", ("a", "b"), SPEC), folder / "model.safetensors")
    return folder / "whole.safetensors", folder / "model.safetensors"


@given(data=st.data())
@fuzz(12)
def test_weights_and_their_metadata(
    folder: Path, weights: tuple[Path, Path], data: st.DataObject
) -> None:
    """The header of a safetensors file is JSON: sizes, offsets and our metadata."""
    for file, read in zip(weights, (read_backbone, read_model), strict=True):
        content = file.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        (key,) = [key for key in header["__metadata__"] if key.startswith("hgkd_edge")]
        if data.draw(st.booleans()):
            stated = data.draw(changed(json.loads(header["__metadata__"][key])))
            header["__metadata__"][key] = json.dumps(stated)
        else:
            header = data.draw(changed(header))
        text = json.dumps(header).encode()
        bad = folder / "bad.safetensors"
        bad.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])

        refused_or_read(partial(read, bad), seconds=10)


def test_damaged_weights(folder: Path, weights: tuple[Path, Path]) -> None:
    import torch

    network = create_features(SPEC.name, stem_stride=2, args=SPEC.args)
    torch.save(network.state_dict(), folder / "whole.pth")

    for whole in (weights[0], folder / "whole.pth"):
        content = whole.read_bytes()
        bad = folder / f"bad{whole.suffix}"
        for seed in range(20):
            bad.write_bytes(damaged(content, BINARY, seed))
            refused_or_read(lambda bad=bad: fitting_weights(network, bad, key="student.path"))  # type: ignore[misc]


@given(seed=st.integers(0, 2**32))
@fuzz(30)
def test_a_damaged_array_of_images(folder: Path, seed: int) -> None:
    stored = io.BytesIO()
    np.save(stored, np.ones((1, 3, 2, 2), np.float32))
    file = folder / "images.npy"
    file.write_bytes(damaged(stored.getvalue(), (*BINARY, *TEXT), seed))

    refused_or_read(lambda: load_images(file))


SIDECAR = Sidecar(
    **{
        "engine_sha256": "0" * 64,
        "onnx_sha256": "1" * 64,
        "backend": "tensorrt",
        "version": "10.3",
    },
    **{"gpu": "Orin", "targets": ["8.7"], "precision": "fp16"},
    profile={"min": [1, 3, 8, 8], "opt": [1, 3, 8, 8], "max": [4, 3, 8, 8]},
)


@given(content=changed(vars(SIDECAR)))
@fuzz(30)
def test_the_sidecar_of_an_engine(folder: Path, content: Any) -> None:
    engine = folder / "net.plan"
    engine.write_bytes(b"engine")
    (folder / "net.plan.json").write_text(json.dumps(content))

    refused_or_read(lambda: read_sidecar(engine))


@given(seed=st.integers(0, 2**32), tags=st.binary(max_size=200))
@fuzz(30)
def test_exif_data(folder: Path, seed: int, tags: bytes) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x0110] = 6, "a text", "model"
    lies = damaged(exif.tobytes(), BINARY, seed)[:60_000]
    for content in (lies, b"Exif\0\0" + tags):
        out = io.BytesIO()
        Image.new("RGB", (8, 12)).save(out, "JPEG", exif=content)
        (folder / "a.jpg").write_bytes(out.getvalue())

        refused_or_read(lambda: load_photo(folder / "a.jpg"))
        with open_image(out.getvalue()) as image:
            assert 1 <= turn_of(image).orientation <= 8


CONFIGS = b"configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train/**\n"
DESCRIBED = {
    "README.md": b"---\nlicense: mit\n" + CONFIGS + b"---\n# Data\n",
    ".huggingface.yaml": CONFIGS,
}


@given(name=st.sampled_from(sorted(DESCRIBED)), seed=st.integers(0, 2**32))
@fuzz(12)
def test_what_a_folder_says_of_itself_to_datasets(folder: Path, name: str, seed: int) -> None:
    pytest.importorskip("datasets")
    place = folder / "described"
    shutil.rmtree(place, ignore_errors=True)
    for label in "ab":
        (place / "train" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(place / "train" / label / "0.png")
    (place / name).write_bytes(damaged(DESCRIBED[name], TEXT, seed))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(folder / "cache"))
        refused_or_read(lambda: open_splits(DataConfig(source="hf", path=place)), seconds=10)


def parsed(parse: Callable[[str], object], text: str) -> None:
    with contextlib.suppress(ValueError, yaml.YAMLError):
        parse(text)


@given(text=st.text(max_size=300), content=ANYTHING)
@fuzz(50)
def test_yaml_and_json(text: str, content: Any) -> None:
    for parse in (parse_yaml, parse_json):
        for each in (text, yaml.safe_dump(content), json.dumps(content)):
            within(1, partial(parsed, parse, each))


@given(metadata=st.dictionaries(st.text(max_size=20), LINES))
@fuzz(15)
def test_metadata_of_a_network_never_gives_a_wrong_input(metadata: dict[str, str]) -> None:
    try:
        spec = within(1, lambda: InputSpec.from_metadata(metadata, geometry="cover"))
    except (KeyError, ValueError, TypeError):
        return
    assert min(spec.size) > 0
    assert np.isfinite(spec.array(Image.new("RGB", (9, 9)))).all()


# Each file of a run, replaced by every kind of thing that may lie there.
PLACES = (
    *("recipe.yaml", "manifest.json", "export.json", "bench.json", "finetune.yaml"),
    *("finetune.json", "evaluation.json", "scores.json", "log.jsonl", "model.safetensors"),
    *("backbone.safetensors", "checkpoints", "checkpoints/last.pt", "export", "pictures"),
    *("finetune.jsonl", "checkpoints/finetune.pt", "checkpoints/last.pt.sha256", "demo.json"),
    *("export/whole.fp32.onnx", "model_card.md", "export/images.npy", "comparison.svg"),
)
THINGS = ("nothing", "garbage", "a folder", "a file", "vast", "a pipe", "a link out", "a loop")


def put(thing: str, place: Path) -> None:
    place.parent.mkdir(exist_ok=True)
    match thing:
        case "garbage":
            place.write_bytes(random.Random(0).randbytes(500))
        case "a folder":
            place.mkdir()
        case "a file":
            place.write_text("{}")
        case "vast":
            with place.open("wb") as file:
                # Weights may be of any size; they are read for their checksum.
                file.truncate((2**26 if place.suffix == ".safetensors" else 2**30) + 1)
        case "a pipe":
            os.mkfifo(place)
        case "a link out":
            place.symlink_to("/etc/passwd")
        case "a loop":
            place.symlink_to(place.name)


def ends_well_or_in_a_line(capsys: pytest.CaptureFixture[str]) -> int:
    """Run the command line; its exit status."""
    from hgkd_edge.cli import main

    with pytest.raises(SystemExit) as ended:
        main()
    printed, code = capsys.readouterr().err, ended.value.code
    assert isinstance(code, int)
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == (code != 0), (sys.argv, printed)
    assert code in (0, 1, 2), (sys.argv, printed)
    assert "bug" not in printed, (sys.argv, printed)
    assert "Traceback" not in printed, (sys.argv, printed)
    return code


COMMANDS = ("bench", "evaluate", "export", "finetune", "compare")  # each meets every place


@pytest.mark.parametrize("place", PLACES)
def test_a_run_made_hostile_file_by_file(
    tiny_recipe: dict[str, Any],
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    turns = itertools.count(PLACES.index(place))
    for thing in THINGS:
        run = tmp_path / "runs" / thing.replace(" ", "-")
        run.mkdir(parents=True)
        (run / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe))
        (run / "manifest.json").write_text('{"artifacts": {}, "seed": 0}')
        target = run / place
        target.unlink(missing_ok=True)
        put(thing, target)

        turn = next(turns)
        for command in ("report", COMMANDS[turn % len(COMMANDS)]):
            with argv(monkeypatch, command, str(run)):
                assert ends_well_or_in_a_line(capsys) != 1, (thing, command)


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every file that the commands write, of an untrained network."""
    data = {"source": "folder", "path": str(photos), "image_size": 64}
    recipe = load_recipe(builtin_recipes()["demo"]).model_dump(mode="json") | {"data": data}
    run = RunDir.create(Recipe.model_validate(recipe), tmp_path_factory.mktemp("runs") / "whole")
    spec = BackboneSpec("resnet18", 2, (64, 64), (0.5,) * 3, (0.25,) * 3, {"channels": [8] * 4})
    card = ModelCard("classify", ("dress", "hat", "shirt"), spec)
    save_model(Classification().create(card), card, run.model_file)
    save_backbone(
        create_features(spec.name, stem_stride=2, args=spec.args), spec, run.backbone_file
    )
    for file in (run.model_file, run.backbone_file):
        run.add_artifact(file)
    run.export_dir.mkdir()
    exported = [add_file(run, ending, layers) for ending, layers in FILES.items()]
    run.export_file.write_text(json.dumps({"files": exported}))
    settings = FinetuneConfig.model_validate(
        {
            **{"task": "classify", "backbone": str(run.backbone_file), "data": data},
            "train": {"epochs": 1, "warmup_epochs": 0, "batch_size": 16},
        }
    )
    run.finetune_file.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    measure(run, fp32=2.0, fp16=1.0)
    keep(run, fp32=80.0, fp16=79.0)
    return run.path


WORK = (
    *(["report"], ["evaluate"], ["compare"], ["predict", "photo.png"]),
    *(["bench", "--duration", "0.01", "--rounds", "1"], ["finetune", "--resume"]),
    *(["embed", "photo.png"], ["export", "--onnx"]),
)


# Two or three of each place in CI, all on demand.
PAIRS = list(itertools.product(THINGS, WORK))
STEP = 1 if EXAMPLES else 23  # prime: every place meets different commands


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("place", PLACES)
def test_a_whole_run_made_hostile_file_by_file(
    whole: Path,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("photo.png")
    for thing, (command, *options) in PAIRS[PLACES.index(place) % STEP :: STEP]:
        run = tmp_path / "runs" / f"{command}-{thing}".replace(" ", "-")
        shutil.copytree(whole, run)
        target = run / place
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        put(thing, target)

        with argv(monkeypatch, command, str(run), *options):
            ends_well_or_in_a_line(capsys)


@pytest.fixture
def workplace(whole: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: with `run`, `photos` and `photo.png`."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "photos").symlink_to(photos)
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    return tmp_path


ASKING_FOR_NONE = (
    *(["doctor"], ["devices"], ["recipes", "list"], ["recipes", "new", "--images", "photos"]),
    *(["data", "photos"], ["embed", "run", "photo.png"], ["evaluate", "run", "--features"]),
    *(["compare", "run"], ["predict", "run", "photo.png"], ["predict", "run", "clip.mp4"]),
)


@pytest.mark.parametrize("words", ASKING_FOR_NONE, ids=" ".join)
def test_a_command_that_asks_for_no_socket_opens_none(
    words: list[str],
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those of distill, pretrain, finetune, export, bench and report: `tests/test_faults.py`."""
    if "clip.mp4" in words:
        pytest.importorskip("av")
        from tests.video.clips import make_clip

        make_clip(workplace / "clip.mp4", count=2)
    opened: list[object] = []

    def refuse(*arguments: object) -> None:
        opened.append(arguments)
        raise OSError("no socket was asked for")

    for name in ("socket.connect", "socket.bind", "socket.sendto", "getaddrinfo"):
        monkeypatch.setattr(f"socket.{name}", refuse)

    with argv(monkeypatch, *words):
        assert ends_well_or_in_a_line(capsys) == 0

    assert opened == []
