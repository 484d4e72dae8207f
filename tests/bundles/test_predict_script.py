"""The `predict` bundle: one file with the same answers as `hgkd-edge predict`."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from exporters.bake import Preprocessing, bake
from exporters.onnx_info import onnx_info
from hgkd_edge.bench.edge import ort_device
from hgkd_edge.bundles import BundleSource, device, make_bundle
from hgkd_edge.bundles.device import predict as predict_script
from hgkd_edge.bundles.triton import model_config
from hgkd_edge.data.find_images import IMAGE_SUFFIXES
from hgkd_edge.data.input_spec import PREFIX
from hgkd_edge.export_options import ExportOptions
from hgkd_edge.export_plan import POSTPROCESSING
from hgkd_edge.exportable import load_exportable
from hgkd_edge.predict import image_files, predict
from hgkd_edge.tasks.answers import load_photo
from tests.bundles.conftest import Deployed
from tests.bundles.helpers import TASKS, real_images

PROGRAMS = sorted(Path(device.__file__).parent.glob("[a-z]*.py"))
THRESHOLD = 0.1  # so that suppression has many boxes


@pytest.mark.parametrize("task", TASKS)
def test_the_script_answers_real_images_as_predict_does(
    task: str,
    deployed: Callable[[str], Deployed],
    run_script: Callable[..., list[dict[str, Any]]],
    photos: Path,
    tmp_path: Path,
) -> None:
    folder = deployed(task).folder("predict")
    images = _with_awkward_ones(real_images(task, photos), tmp_path)

    ours = predict(folder / "model.onnx", images, tmp_path / "ours", threshold=THRESHOLD)
    theirs = run_script(
        folder / "predict.py", *images, "--out", tmp_path / "out", "--threshold", str(THRESHOLD)
    )

    assert len(ours) == len(theirs) == len(images)
    for one, other in zip(ours, theirs, strict=True):
        kind = {"classify": "labels", "segment": "shares", "detect": "boxes"}[task]
        assert one.photo == other["photo"]
        assert _plain(other[kind]) == _plain(one.found.to_dict()[kind])
        assert Image.open(other["picture"]).size == Image.open(one.picture).size
        if task == "segment":
            maps = (np.asarray(Image.open(file)) for file in (one.map, other["map"]))
            np.testing.assert_array_equal(*maps)
    if task == "detect":
        assert sum(len(record["boxes"]) for record in theirs) > 10


@pytest.mark.parametrize("task", TASKS)
def test_the_script_answers_with_processing_inside_the_file_too(
    task: str,
    deployed: Callable[[str], Deployed],
    run_script: Callable[..., list[dict[str, Any]]],
    photos: Path,
    tmp_path: Path,
) -> None:
    made, folder = deployed(task), tmp_path / "predict"
    plain, baked = Path(made.result.onnx.path), tmp_path / "net.baked.onnx"
    subject = load_exportable(made.run)
    taken = subject.input
    inside = Preprocessing(mean=taken.mean, std=taken.std, geometry=taken.geometry)
    post = POSTPROCESSING[task]
    bake(plain, baked, preprocessing=inside, postprocessing=post, prefix=PREFIX)
    source = BundleSource(made.run, subject, plain, baked, "fp32", ExportOptions())
    make_bundle("predict", source, folder)
    images = real_images(task, photos)[:2]

    theirs = run_script(folder / "predict.py", *images, "--out", tmp_path / "out")

    ours = predict(baked, images, tmp_path / "ours")
    kind = {"classify": "labels", "segment": "shares", "detect": "boxes"}[task]
    wanted = [one.found.to_dict() for one in ours]
    assert [_plain(one[kind]) for one in theirs] == [_plain(one[kind]) for one in wanted]
    config = model_config("net", onnx_info(baked), labeled=True, largest_batch=16)
    # Suppressed boxes are rows of all images together: their requests cannot be batched.
    assert ("dynamic_batching" in config) == (task != "detect")
    assert ("labels.txt" in config) == (task == "classify")
    assert "TYPE_UINT8" in config


def _plain(value: Any) -> Any:
    """The answer after a JSON round trip."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _with_awkward_ones(images: list[Path], folder: Path) -> list[Path]:
    """The images, and variants: rotated by EXIF, very long, gray with alpha, palette."""
    turned, long, gray, palette = (
        folder / f"{n}.png" for n in ("turned", "long", "gray", "palette")
    )
    photo = Image.open(images[0]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(turned.with_suffix(".jpg"), exif=exif)
    photo.resize((900, 20)).save(long)
    photo.convert("LA").save(gray)
    photo.convert("P").save(palette)
    return [*images, turned.with_suffix(".jpg"), long, gray, palette]


def test_the_script_finds_the_images_that_predict_finds(photos: Path, tmp_path: Path) -> None:
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / "scans").mkdir()
    photo = Image.open(real_images("classify", photos)[0]).convert("L")
    for name in ("a.jpg", "._a.jpg", ".thumbnails/a.jpg", "scans/b.PGM", "scans/c.jfif"):
        photo.save(tmp_path / name, "PPM" if name.endswith("PGM") else "JPEG")

    found = list(predict_script.image_files([tmp_path]))

    assert sorted(predict_script.ENDINGS) == sorted(IMAGE_SUFFIXES)
    assert found == list(image_files([tmp_path]))
    assert [file.name for file in found] == ["a.jpg", "b.PGM", "c.jfif"]


@pytest.mark.parametrize("orientation", [None, 1, 2, 3, 4, 5, 6, 7, 8, 9])
@pytest.mark.parametrize("ending", ["jpg", "tiff", "webp"])
def test_images_are_turned_upright_as_predict_turns_them(
    orientation: int | None,
    ending: str,
    deployed: Callable[[str], Deployed],
    device_programs: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    device_programs(deployed("classify").folder("predict"))
    from predict import load_image

    file = tmp_path / f"photo.{ending}"
    pixels = np.random.default_rng(0).integers(0, 255, (12, 20, 3), np.uint8)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, exif=exif)

    np.testing.assert_array_equal(np.asarray(load_image(file)), np.asarray(load_photo(file)))


@pytest.mark.parametrize("bits", [0, 10, 12])
def test_images_of_16_bits_are_scaled_as_predict_scales_them(
    bits: int,
    deployed: Callable[[str], Deployed],
    device_programs: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    device_programs(deployed("classify").folder("predict"))
    from predict import load_image

    file = tmp_path / "deep.png"
    pixels = np.arange(200, dtype=np.uint16).reshape(10, 20) * 5
    Image.fromarray(pixels).save(file)

    scaled = np.asarray(load_image(file, bits))

    np.testing.assert_array_equal(scaled, np.asarray(load_photo(file, bits=bits)))
    if bits:
        with pytest.raises(ValueError, match="can be 0 to 255 only"):
            load_image(file, 8)


def test_a_damaged_file_is_named_and_the_others_are_answered(
    deployed: Callable[[str], Deployed], photos: Path, tmp_path: Path
) -> None:
    import json
    import subprocess

    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    good = real_images("classify", photos)[0]
    script = deployed("classify").folder("predict") / "predict.py"

    done = subprocess.run(
        [sys.executable, script, broken, good], capture_output=True, text=True, check=False
    )

    first, second = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 1
    assert "cannot identify" in first["error"]
    assert "labels" in second


@pytest.mark.parametrize(("allowed", "threads"), [({0}, 1), ({0, 1, 2, 3}, 0)])
def test_it_takes_as_many_threads_as_the_process_may_use_cores(
    monkeypatch: pytest.MonkeyPatch, allowed: set[int], threads: int
) -> None:
    import onnxruntime

    opened = mock.MagicMock()
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    opened.return_value.get_outputs.return_value = []

    predict_script.open_onnx(Path("model.onnx"))
    ort_device.open_session({"model": "model.onnx", "threads": None})
    ort_device.open_session({"model": "model.onnx", "threads": 3})

    given = [call.args[1].intra_op_num_threads for call in opened.call_args_list]
    assert given == [threads, threads, 3]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda file: file.name)
def test_programs_are_python_3_8(program: Path) -> None:
    tree = ast.parse(program.read_text(), feature_version=(3, 8))

    # Code that the 3.8 grammar accepts but Python 3.8 does not support.
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            assert not any(keyword.arg == "strict" for keyword in node.keywords), program
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("removeprefix", "removesuffix", "bit_count"), program


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda file: file.name)
def test_programs_need_what_their_readme_says_and_nothing_of_ours(program: Path) -> None:
    known = {"numpy", "PIL", "onnxruntime", "tensorrt", "cv2", "gi", "tritonclient"}
    adjacent = {file.stem for file in PROGRAMS}

    for node in ast.walk(ast.parse(program.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            top = name.partition(".")[0]
            assert top in known | adjacent | set(sys.stdlib_module_names), f"{program.name}: {name}"
            if program.name == "predict.py":
                assert top not in known - {"numpy", "PIL", "onnxruntime"} | adjacent
