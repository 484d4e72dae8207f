"""The ONNX tests again, with the lowest versions of onnx and onnxruntime that pip may install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AGAIN = ("tests/exporters/test_network_files.py", "tests/exporters/test_foreign_onnx.py")
# onnxruntime of that time was compiled for numpy 1.
OF_THEIR_TIME = "numpy<2"
UNREACHABLE = re.compile(
    r"NewConnectionError|NameResolution|ConnectTimeout|Network is unreachable|dns error|tcp connect"
)


def lowest(package: str) -> str:
    """The lowest version that `pyproject.toml` allows."""
    found = re.search(rf'"{package}>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert found, f"pyproject.toml states no lowest {package}"
    return found[1]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both packages in their lowest version, to put in front of the path."""
    folder = tmp_path_factory.mktemp("lowest")
    wanted = [f"{package}=={lowest(package)}.*" for package in ("onnx", "onnxruntime")]
    pip = ["uv", "pip"] if shutil.which("uv") else [sys.executable, "-m", "pip"]
    options = ["--quiet", "--only-binary", ":all:", "--target", str(folder)]
    done = subprocess.run(
        [*pip, "install", *options, *wanted, OF_THEIR_TIME], capture_output=True, text=True
    )
    if done.returncode and UNREACHABLE.search(done.stderr):
        pytest.skip("no network to install the lowest onnx and onnxruntime from")
    if done.returncode and sys.version_info >= (3, 13) and "No matching" in done.stderr:
        pytest.skip("the lowest onnx and onnxruntime have no wheels for this Python")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_onnx_tests_pass_with_the_lowest_allowed_versions(packages: Path) -> None:
    path = os.pathsep.join([str(packages), str(ROOT)])
    version = "import onnx, onnxruntime as r; print(onnx.__version__, r.__version__)"
    commands = (["-c", version], ["-m", "pytest", "-q", "-p", "no:cacheprovider", *AGAIN])

    found, tests = (
        subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        for command in commands
    )

    for version, package in zip(found.stdout.split(), ("onnx", "onnxruntime"), strict=True):
        assert version.startswith(lowest(package))
    assert tests.returncode == 0, tests.stdout[-3000:]
    assert " passed" in tests.stdout
    assert "skipped" not in tests.stdout
