"""Shared fixtures: a folder with a few real photos, and a recipe that runs in seconds."""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
import typer.testing
import yaml

# Set before torch is imported anywhere: tests run in parallel on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# A runner may start tests with Ctrl-C ignored (nohup, a background job), and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

NARROW = {"channels": [8, 16, 24, 32], "layers": [1, 1, 1, 1]}  # of a ResNet
BUNDLED = Path(__file__).parent.parent / "hgkd_edge" / "data" / "bundled" / "clothing10.zip"


def pytest_configure(config: pytest.Config) -> None:
    """Give every pytest-xdist worker its own core: otherwise their threads compete."""
    worker = getattr(config, "workerinput", None)
    if worker is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker["workerid"][2:]) % len(cores)]})
        os.environ["OMP_NUM_THREADS"] = "1"
        for name in [name for name in os.environ if name.startswith("MALLOC_")]:
            del os.environ[name]  # set in the Makefile for this process, not for those it measures


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, all files of `bundles` go to one worker, which makes their runs."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFixtures(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            bundles = "tests/bundles/"
            return bundles if nodeid.startswith(bundles) else super()._split_scope(nodeid)

    return ByFixtures(config, log)


def pytest_collection_finish() -> None:
    """Let the garbage collector run less: 7 % of the time of tests that convert networks.

    The modules loaded so far stay, and need not be visited again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def extract_photos(to: Path, *, split: str, per_class: int, classes: int = 3) -> None:
    """Copy real photos of a few classes to `to/<class>/*.webp`."""
    with zipfile.ZipFile(BUNDLED) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith(f"{split}/"))
        for label in sorted({name.split("/")[1] for name in names})[:classes]:
            members = [name for name in names if name.split("/")[1] == label][:per_class]
            for name in members:
                file = to / label / Path(name).name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.read(name))


@pytest.fixture(scope="session", autouse=True)
def working_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests work outside the repository: their `runs/latest` must not replace the user's."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("work"))
    yield
    os.chdir(before)


@pytest.fixture(scope="session", autouse=True)
def converted_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Equal networks are converted to ONNX once in all tests together."""
    if "torch" not in sys.modules:  # of the tests that were collected, none converts here
        yield
        return
    from tests.converted import ConvertOnce

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exporters.onnx_export._convert", ConvertOnce(shared / "converted"))
        yield


@pytest.fixture(scope="session", autouse=True)
def made_once() -> Iterator[None]:
    """A worker makes equal students, and decodes equal photos, once."""
    if "torch" not in sys.modules:
        yield
        return
    from tests.made import DecodeOnce, MakeOnce

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hgkd_edge.distillation.parts._encoder", MakeOnce())
        patch.setattr("hgkd_edge.data.decode.decode_into", DecodeOnce())
        yield


@pytest.fixture
def made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make equal students again, for tests that replace parts of how they are made."""
    from tests.made import _encoder

    monkeypatch.setattr("hgkd_edge.distillation.parts._encoder", _encoder)


@pytest.fixture(scope="session", autouse=True)
def commands_made_once() -> Iterator[None]:
    """Typer makes its tree of commands at every call, of which a process has only one."""
    once = functools.cache(typer.main.get_command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.main.get_command", once)
        patch.setattr("typer.testing._get_command", once)
        yield


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `{train,test}/<class>/*.webp`: 48 and 18 real photos of three classes."""
    root = tmp_path_factory.mktemp("photos")
    extract_photos(root / "train", split="train", per_class=16)
    extract_photos(root / "test", split="test", per_class=6)
    return root


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute intervals of mAP from ten resamples, for tests that do not check them."""
    monkeypatch.setattr("hgkd_edge.tasks.precision_bootstrap.RESAMPLES", 10)


@pytest.fixture
def tiny_recipe(photos: Path) -> dict[str, Any]:
    """A recipe as a mapping: a teacher of two narrow blocks, a narrow ResNet of four blocks."""
    return {
        "name": "tiny",
        "data": {"source": "folder", "path": str(photos), "image_size": 64},
        "teacher": {
            "name": "vit_tiny_patch16_224",
            "weights": "pretrain",
            "args": {"patch_size": 8, "depth": 2, "embed_dim": 48},
            "pretrain": {"epochs": 2, "batch_size": 16, "decoder_width": 32, "decoder_depth": 1},
        },
        "student": {
            "name": "resnet18",
            "args": dict(NARROW),
            "stem_stride": 2,
            "decoder_width": 16,
        },
        "train": {"epochs": 2, "batch_size": 16, "warmup_epochs": 1, "precision": "fp32"},
    }


@pytest.fixture
def tiny_recipe_file(tiny_recipe: dict[str, Any], tmp_path: Path) -> Path:
    """The tiny recipe as a file."""
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny_recipe, sort_keys=False))
    return file


@pytest.fixture(autouse=True)
def seeded() -> None:
    """NumPy's and torch's global generators start alike in every test."""
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Pre-trained teachers are shared within a test session, never with the user's cache."""
    base = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("HGKD_EDGE_CACHE", str(base))
