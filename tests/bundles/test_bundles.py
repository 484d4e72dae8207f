"""Tests common to all bundles."""

from __future__ import annotations

import errno
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from exporters import ExportError
from hgkd_edge.bundles import BUNDLES, make_bundle
from hgkd_edge.bundles.source import Bundle, BundleSource
from hgkd_edge.export_options import BUNDLES as NAMES
from hgkd_edge.export_options import ExportOptions
from hgkd_edge.exportable import load_exportable
from hgkd_edge.files import file_sha256
from hgkd_edge.manifest_record import ManifestRecord, NetworkOrigin
from tests.bundles.conftest import Deployed
from tests.bundles.helpers import TASKS

NOT_RUN = {
    "triton": "not been run on a real Triton server",
    "deepstream": "been run in DeepStream",
    "jetson": "not been run on a real Jetson",
    "timm": "Pushing it to the hub was not tried",
    "predict": "compare the answers of this script",
}


def source_of(made: Deployed) -> BundleSource:
    onnx = Path(made.result.onnx.path)
    subject = load_exportable(made.run)
    options = ExportOptions(bundles=("deepstream",), frame=(96, 128))
    return BundleSource(made.run, subject, onnx, onnx, "fp32", options)


def test_the_option_names_the_bundles_there_are() -> None:
    assert tuple(BUNDLES) == NAMES
    with pytest.raises(ExportError, match="--bundle 'docker' is not known"):
        ExportOptions(bundles=("docker",))
    with pytest.raises(ExportError, match="--bundle triton needs one image size"):
        ExportOptions(bundles=("triton",), dynamic_size=True)


@pytest.mark.parametrize("task", TASKS)
def test_every_file_of_a_bundle_is_in_the_manifest(
    task: str, deployed: Callable[[str], Deployed]
) -> None:
    made = deployed(task)

    artifacts = made.run.manifest().artifacts

    record = json.loads(made.run.export_file.read_text())
    assert record["bundles"] == [bundle.to_dict() for bundle in made.result.bundles]
    for bundle in record["bundles"]:
        folder = Path(bundle["path"])
        found = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}
        assert found == set(bundle["files"])
        for name in found:
            entry = artifacts[f"export/{bundle['bundle']}/{name}"]
            assert entry.sha256 == file_sha256(folder / name)


@pytest.mark.parametrize("task", TASKS)
def test_every_readme_has_three_commands_the_license_and_what_was_not_run(
    task: str, deployed: Callable[[str], Deployed]
) -> None:
    for bundle in deployed(task).result.bundles:
        text = (Path(bundle.path) / "README.md").read_text()

        commands = text.partition("```bash\n")[2].partition("```")[0].strip().splitlines()
        assert len(commands) == 3, bundle.bundle
        assert "cc-by-nc-4.0, which forbids commercial use" in text
        assert NOT_RUN[bundle.bundle] in text
        assert "{" + "{" not in text
        assert "\n\n\n\n" not in text


@pytest.mark.parametrize(
    ("license_", "expected"),
    [
        ("cc-by-nc-4.0", "forbids commercial use"),
        ("dinov3-license", "read them before you use or distribute"),
        ("apache-2.0", ""),
        ("MIT", ""),
        (None, ""),
    ],
)
def test_a_license_is_shown_where_it_has_conditions(
    license_: Any,
    expected: str,
    deployed: Callable[[str], Deployed],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = source_of(deployed("classify"))
    origin = NetworkOrigin(name="vit", license=license_)
    monkeypatch.setattr(source.run, "manifest", lambda: ManifestRecord(teacher=origin))

    lines = source.licenses

    assert (len(lines) == 1 and expected in lines[0]) if expected else not lines


def test_a_bundle_that_fails_leaves_the_one_that_was_there(
    deployed: Callable[[str], Deployed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = source_of(deployed("classify")), tmp_path / "predict"
    make_bundle("predict", source, folder)
    before = sorted(folder.iterdir())

    def fail(source: BundleSource, folder: Path) -> Path:
        (folder / "half").write_text("")
        raise TemplateError("broken")

    monkeypatch.setitem(
        BUNDLES, "predict", Bundle(("classify",), "cpu", lambda subject: None, fail)
    )
    with pytest.raises(TemplateError):
        make_bundle("predict", source, folder)

    assert sorted(folder.iterdir()) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["predict"]


def test_a_new_bundle_replaces_the_old_one_whole(
    deployed: Callable[[str], Deployed], tmp_path: Path
) -> None:
    source, folder = source_of(deployed("classify")), tmp_path / "predict"
    make_bundle("predict", source, folder)
    (folder / "of an earlier version").write_text("")

    make_bundle("predict", source, folder)

    assert not (folder / "of an earlier version").exists()


@pytest.mark.parametrize("name", ["a b", "../x", "ünï", "", "-", "ok_1.2-3"])
def test_a_runs_name_becomes_one_that_every_server_takes(
    name: str, deployed: Callable[[str], Deployed]
) -> None:
    source = source_of(deployed("classify"))
    run = replace(source, run=type(source.run)(Path("/runs") / name)) if name else source

    assert run.name
    assert set(run.name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
    assert not run.name.startswith((".", "-"))


def test_programs_and_templates_are_in_the_wheel(tmp_path: Path) -> None:
    builder = pytest.importorskip("hatchling.builders.wheel")
    root = Path(__file__).parent.parent.parent

    wheel = next(builder.WheelBuilder(str(root)).build(directory=str(tmp_path)))

    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("device", "templates"):
        for file in (root / "hgkd_edge" / "bundles" / folder).iterdir():
            if file.is_file():
                assert f"hgkd_edge/bundles/{folder}/{file.name}" in inside


def test_a_bundle_that_cannot_be_replaced_stays(
    deployed: Callable[[str], Deployed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = source_of(deployed("classify")), tmp_path / "timm"
    make_bundle("timm", source, folder)
    before = sorted(folder.rglob("*"))
    real = os.replace

    def replace(one: Path, other: Path) -> None:
        if other == folder and one.name == folder.name:
            raise PermissionError(errno.EACCES, "Permission denied")
        real(one, other)

    monkeypatch.setattr("os.replace", replace)
    with pytest.raises(PermissionError):
        make_bundle("timm", source, folder)

    assert sorted(folder.rglob("*")) == before
    assert list(tmp_path.iterdir()) == [folder]
