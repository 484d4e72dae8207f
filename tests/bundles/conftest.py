"""Three small fine-tuned runs, each exported once with every bundle that supports it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hgkd_edge.export import export_run
from hgkd_edge.export_options import ExportOptions
from hgkd_edge.export_record import ExportRecord
from hgkd_edge.finetune import finetune
from hgkd_edge.manifest_record import ManifestRecord, NetworkOrigin
from hgkd_edge.rundir import RunDir
from hgkd_edge.tasks.config import resolve
from tests.bundles.helpers import FRAME, new_run
from tests.tasks.helpers import QUICK, SAMPLES

SETTINGS = {
    "classify": ["train.epochs=3", "classify.probe_first=false"],
    "segment": ["data.image_size=64", "segment.binary=true", "train.epochs=3"],
    "detect": ["data.image_size=[64, 96]", "train.epochs=6"],
}
DATA = {"segment": "nuclei", "detect": "bccd"}
ALL = ("triton", "deepstream", "predict", "jetson")


class Deployed(NamedTuple):
    """A run and the record of its export."""

    run: RunDir
    result: ExportRecord

    def folder(self, bundle: str) -> Path:
        return self.run.export_dir / bundle


@pytest.fixture(scope="package")
def deployed(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Callable[[str], Deployed]:
    """A run fine-tuned for a task, with its bundles."""

    @cache
    def make(task: str) -> Deployed:
        run = new_run(photos, tmp_path_factory.mktemp(task) / "my run")
        data = SAMPLES / DATA[task] if task in DATA else None
        finetune(resolve(run, task, data, "distilled", [*QUICK, *SETTINGS[task]]), run)
        origin = NetworkOrigin(name="vit_base", license="cc-by-nc-4.0")
        run.update_manifest(ManifestRecord(teacher=origin))
        bundles = (*ALL, "timm") if task == "classify" else ALL
        return Deployed(run, export_run(run, ExportOptions(bundles=bundles, frame=FRAME)))

    return make


@pytest.fixture
def device_programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Makes a bundle's programs importable by their plain names, as they are on the device."""
    names = ("predict", "camera", "capture_opencv", "capture_gstreamer", "engine", "build_engine")

    def use(folder: Path) -> None:
        monkeypatch.syspath_prepend(str(folder))

    yield use
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def run_script() -> Callable[..., list[dict[str, Any]]]:
    """Runs a program of a bundle in its own process, without this project on its path."""

    def run(script: Path, *arguments: str | Path) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, script, *map(str, arguments)],
            capture_output=True,
            text=True,
            env={"PATH": "/usr/bin:/bin"},
            cwd=script.parent,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run
