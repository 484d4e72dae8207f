"""The base install: its lowest versions, on JetPack 6, and its files on JetPack 5.

Packages are installed into a separate folder, in front of the path.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from uv import find_uv_bin

from .conftest import SIZE, Exported, photo_like

ROOT = Path(__file__).parents[2]
# Fast tests of what the base install does: none of them needs torch.
AGAIN = (
    *(f"tests/exporters/test_{part}.py" for part in ("network_files", "foreign_onnx", "agreement")),
    "tests/bench/test_commands.py::test_wrong_options_are_refused_in_one_line",
    "tests/bench/test_commands.py::test_devices_lists_boards_and_what_runs_here",
    *(f"tests/test_{part}.py" for part in ("recipe", "console")),
)
# onnxruntime of that time was compiled for numpy 1.
OF_THEIR_TIME = "numpy<2"
UNREACHABLE = re.compile(r"Network is unreachable|dns error|tcp connect|operation timed out")
# JetPack 6 is Ubuntu 22.04: Python 3.10, glibc 2.35.
JETPACK6 = "aarch64-manylinux_2_35"
# JetPack 5's Python 3.8 gets no onnxruntime for a GPU later than this one.
JETPACK5 = "onnxruntime==1.15.*"
RUN = """
import sys, numpy, onnxruntime
images = numpy.load(sys.argv[1])
for file in sys.argv[2:]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: images})
    numpy.savez(file + ".npz", *outputs)
print(onnxruntime.__version__)
"""


def base_requirements() -> dict[str, str]:
    """Package of the base install -> the lowest version that `pyproject.toml` allows."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    base = text[text.index("\ndependencies = [") : text.index("[project.optional-dependencies]")]
    return dict(re.findall(r'"([\w-]+)>=([\d.]+)"', base))


def installed(folder: Path, *wanted: str) -> Path:
    """Put packages into a folder; skips where there is no network or no wheel for this Python."""
    uv("install", "--python", sys.executable, "--target", str(folder), *wanted)
    return folder


def uv(*command: str) -> None:
    """Run `uv pip` with wheels only; skips where it cannot work."""
    options = ["--quiet", "--only-binary", ":all:"]
    done = subprocess.run(
        [find_uv_bin(), "pip", *command, *options], capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode and UNREACHABLE.search(done.stderr):
        pytest.skip("no network to install packages from")
    if done.returncode and sys.version_info >= (3, 12) and "Python ABI tag" in done.stderr:
        pytest.skip("these versions have no wheels for this Python")
    assert done.returncode == 0, done.stderr


def run_with(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the packages of a folder in front of all others."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_base_install_works_with_the_lowest_allowed_versions(tmp_path: Path) -> None:
    lowest = base_requirements()
    packages = installed(tmp_path, *(f"{name}=={version}.*" for name, version in lowest.items()))

    names = (
        "from importlib.metadata import version; print(*map(version, __import__('sys').argv[1:]))"
    )
    found = run_with(packages, "-c", names, *lowest)
    tests = run_with(packages, "-m", "pytest", "-q", "-p", "no:cacheprovider", *AGAIN)

    assert len(lowest) > 8
    for version, wanted in zip(found.stdout.split(), lowest.values(), strict=True):
        assert f"{version}.".startswith(f"{wanted}.")
    assert tests.returncode == 0, tests.stdout[-3000:]
    assert " passed" in tests.stdout


def test_the_base_install_resolves_to_wheels_for_jetpack_6() -> None:
    uv("compile", "pyproject.toml", "--python-version", "3.10", "--python-platform", JETPACK6)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_exported_files_run_on_the_onnxruntime_of_jetpack_5(
    exported: Callable[[str], Exported], tmp_path_factory: pytest.TempPathFactory
) -> None:
    packages = installed(tmp_path_factory.mktemp("jetpack5"), JETPACK5, OF_THEIR_TIME)
    folder = tmp_path_factory.mktemp("files")
    images = photo_like(8, seed=3)
    np.save(folder / "images.npy", images)
    files = [*_files(exported("mobilenetv3_small_100").path, folder), *_of_other_tasks(folder)]

    done = run_with(packages, "-c", RUN, str(folder / "images.npy"), *map(str, files))

    assert done.stdout.startswith("1.15"), done.stderr[-2000:]
    assert len(files) == 9
    for file in files:
        model = onnx.load(file)
        assert model.ir_version <= 8
        assert {entry.domain: entry.version for entry in model.opset_import}[""] <= 17
        with np.load(f"{file}.npz") as outputs:
            _agree(file, images, list(outputs.values()))


def _files(source: Path, folder: Path) -> list[Path]:
    """The fp32 file, and those that export makes from it."""
    from exporters.bake import bake
    from exporters.fp16 import convert_fp16
    from exporters.quantize import FLAVORS, quantize_int8

    calibration = photo_like(16, seed=7)
    half, baked = (folder / f"{source.stem}.{kind}.onnx" for kind in ("fp16", "baked"))
    convert_fp16(source, half, images=calibration)
    bake(source, baked, postprocessing="softmax")
    small = [folder / f"{source.stem}.int8-{flavor}.onnx" for flavor in FLAVORS]
    for flavor, path in zip(FLAVORS, small, strict=True):
        quantize_int8(source, path, images=calibration, flavor=flavor)
    return [source, half, baked, *small]


def _of_other_tasks(folder: Path) -> Iterator[Path]:
    """A segmenter and a detector, in fp32 and fp16."""
    from exporters.fp16 import convert_fp16
    from exporters.onnx_export import export_onnx
    from hgkd_edge.models.backbone import BackboneSpec
    from hgkd_edge.models.heads import Detector, Segmenter

    narrow = {"channels": [16, 32, 64, 128], "layers": [1, 1, 1, 1]}
    spec = BackboneSpec("resnet18", 2, (SIZE, SIZE), (0.5,) * 3, (0.25,) * 3, narrow)
    for head in (Segmenter, Detector):
        file, half = (folder / f"{head.__name__}.{kind}.onnx" for kind in ("fp32", "fp16"))
        export_onnx(head(spec, 3).eval(), file, input_size=(3, SIZE, SIZE))
        convert_fp16(file, half, images=photo_like(16, seed=7))
        yield from (file, half)


def _agree(file: Path, images: np.ndarray, outputs: list[np.ndarray]) -> None:
    """The old runtime's outputs point where the installed one's do."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    expected = session.run(None, {session.get_inputs()[0].name: images})
    for wanted, got in zip(expected, outputs, strict=True):
        # Most of an untrained detector's outputs is the same for all images, which proves little.
        # INT8 rounds too coarsely for the rest.
        same = 0.0 if "int8" in file.name else wanted.mean(axis=0, keepdims=True)
        ours, theirs = ((each - same).reshape(len(images), -1) for each in (got, wanted))
        lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        cosines = (ours * theirs).sum(1) / lengths
        assert cosines.min() > 0.99, f"{file.name}: {cosines.min()}"
