"""Runtimes report to their makers by default, except in CI, and store an identity."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Both report from threads or child processes.
USE_ALL = """
import sys
def write(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        open(sys.argv[1], "a").write(event)
sys.addaudithook(write)
from exporters import runtimes
from exporters.openvino_export import export_openvino
runtimes.open(sys.argv[2])
export_openvino(sys.argv[2], sys.argv[3])
"""


def without_ci(home: Path) -> dict[str, str]:
    """An environment in which no library takes this for CI."""
    home.mkdir()
    return {"PATH": os.environ["PATH"], "HOME": str(home), "ORT_DISABLE_TELEMETRY": ""}


def test_nothing_is_reported_and_no_identity_is_stored(exported, tmp_path):
    files = (tmp_path / "seen", exported("resnet18").path, tmp_path / "net.xml")
    command = [sys.executable, "-c", USE_ALL, *map(str, files)]

    subprocess.run(command, check=True, cwd=ROOT, env=without_ci(tmp_path / "home"))

    assert (tmp_path / "net.xml").is_file()
    assert not (tmp_path / "seen").exists()
    assert list((tmp_path / "home").iterdir()) == []


def test_programs_for_a_device_do_not_report_either(exported, tmp_path):
    open_it = "import sys, pathlib, predict; predict.open_onnx(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", open_it, str(exported("resnet18").path)]
    folder = ROOT / "hgkd_edge" / "bundles" / "device"

    subprocess.run(command, check=True, cwd=folder, env=without_ci(tmp_path / "home"))

    assert list((tmp_path / "home").iterdir()) == []
