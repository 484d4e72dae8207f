"""Build `model.plan` from `model.onnx` on this device, with the trtexec that JetPack installs.

    python3 build_engine.py

An engine runs only on the GPU type and TensorRT version that built it, so it is built on the
device. This takes a few minutes.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

HERE = Path(__file__).resolve().parent
INSTALLED = "/usr/src/tensorrt/bin/trtexec"  # where JetPack puts it


def version_of(text: str) -> Tuple[int, int]:
    """Major and minor version in what trtexec prints: `[TensorRT v8502]`, `[TensorRT v100300]`.

    Raises:
        RuntimeError: It prints none.
    """
    match = re.search(r"\[TensorRT v(\d+)", text)
    if match is None:
        raise RuntimeError("trtexec does not report its version: check that 'trtexec --help' runs")
    packed = int(match.group(1))
    if packed < 10000:
        return packed // 1000, packed // 100 % 10
    return packed // 10000, packed // 100 % 100


def arguments(settings: Dict[str, Any], version: Tuple[int, int], folder: Path) -> List[str]:
    """trtexec's flags. The precision is that of the ONNX file, set in each version's own way."""
    given = ["--onnx=%s" % (folder / "model.onnx"), "--saveEngine=%s" % (folder / "model.plan")]
    if settings["dynamic_batch"]:
        shape = "%s:1x3x%dx%d" % (settings["input_name"], *settings["size"])
        given += ["--minShapes=" + shape, "--optShapes=" + shape, "--maxShapes=" + shape]
    if settings["precision"] != "fp32" and version < (11, 0):
        flags = {"fp16": ["--fp16"], "int8": ["--int8", "--fp16"]}[settings["precision"]]
        given += ["--stronglyTyped"] if version >= (10, 0) else flags
    # 8.6 renamed the option that skips the measurement.
    return [*given, "--skipInference" if version >= (8, 6) else "--buildOnly"]


def main() -> int:
    """Build the engine with trtexec; returns the exit code."""
    trtexec = shutil.which("trtexec") or shutil.which(INSTALLED)
    if trtexec is None:
        print("error: trtexec is not installed: sudo apt install libnvinfer-bin", file=sys.stderr)
        return 2
    settings = json.loads((HERE / "model.json").read_text(encoding="utf-8"))
    banner = subprocess.run(
        [trtexec, "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    try:
        version = version_of(banner.stdout.decode(errors="replace"))
    except RuntimeError as error:
        print("error: %s" % error, file=sys.stderr)
        return 2
    return subprocess.run([trtexec, *arguments(settings, version, HERE)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
