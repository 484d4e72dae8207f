"""Runs the fast tests with the lowest or the newest versions that `pyproject.toml` allows.

    python -m tests.versions lowest --python python3.10
    python -m tests.versions newest --python python3.13

Makes an environment in a folder (kept with --keep) and installs the extras into it. `lowest` takes
the first series that a requirement names: `torch>=2.7` becomes `torch==2.7.*`. Tools for
development are always the newest. Other arguments go to pytest; paths replace the usual tests.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = ("train", "openvino", "video", "hf")
TOOLS = (
    *("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "psutil", "hatchling"),
    *("jsonschema", "webdataset"),
)
# What needs neither another extra nor minutes.
TESTS = (
    *(f"tests/{part}" for part in ("bench/test_commands.py", "bench/test_estimate.py", "data")),
    *(f"tests/{part}" for part in ("exporters", "models", "sparse", "tasks", "engine")),
    *(f"tests/test_{part}.py" for part in ("recipe", "recipes", "parsing", "distill", "predict")),
    *(f"tests/{part}" for part in ("video", "test_doors.py", "test_report.py", "test_embed.py")),
    "tests/test_pretrain.py",
)


def requirements(extras: tuple[str, ...], *, lowest: bool) -> list[str]:
    """The base install's requirements and those of the extras, as pip takes them."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    blocks = [re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)]
    blocks += [re.search(rf"^{name} = \[(.*?)\]$", text, re.M | re.S) for name in extras]
    found = [
        wanted
        for block in blocks
        if block
        for line in block[1].splitlines()
        if not line.strip().startswith("#")
        for wanted in re.findall(r'"([^"]+)"', line)
    ]
    return [re.sub(r">=([\d.]+)$", r"==\1.*", wanted) if lowest else wanted for wanted in found]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("which", choices=("lowest", "newest"))
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--extras", default=",".join(EXTRAS))
    parser.add_argument(
        "--keep", type=Path, help="folder of the environment; used again if it exists"
    )
    parser.add_argument("--workers", default="auto", help="processes that run tests")
    asked, for_pytest = parser.parse_known_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.keep or Path(temporary) / "env"
        python = folder / "bin" / "python"
        wanted = requirements(tuple(asked.extras.split(",")), lowest=asked.which == "lowest")
        if not python.exists():
            subprocess.run([asked.python, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--only-binary", ":all:", *wanted, *TOOLS], check=True)
        subprocess.run([*pip, "--no-deps", "-e", ROOT], check=True)
        subprocess.run([python, "-m", "pip", "list", "--format=freeze"], check=True)
        options = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "-n", asked.workers]
        paths = () if any(text.startswith("tests") for text in for_pytest) else TESTS
        return subprocess.run(
            [python, "-m", "pytest", *options, *paths, *for_pytest], cwd=ROOT
        ).returncode


if __name__ == "__main__":
    raise SystemExit(main())
