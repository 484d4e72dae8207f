"""Run folders from untrusted sources: links, pipes, forged and swapped files."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from hgkd_edge.bench.models import resolve_models
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.run import _with_kept_images
from hgkd_edge.cli import main
from hgkd_edge.engine.journal import _open_log, _truncate
from hgkd_edge.errors import RunError, TrainingError
from hgkd_edge.files import atomic_write, open_regular, write_json
from hgkd_edge.manifest_record import Circumstances, ManifestRecord
from hgkd_edge.models.backbone import read_backbone
from hgkd_edge.recipe import Recipe
from hgkd_edge.report import report
from hgkd_edge.run_files import require_recorded
from hgkd_edge.rundir import RunDir
from hgkd_edge.task_model import open_task_model
from hgkd_edge.tasks.base import read_model
from hgkd_edge.tasks.pictures import save_picture
from tests.exporters.test_network_files import save as save_network

SECRET = b"\x89PNG\r\n\x1a\n-----BEGIN PRIVATE KEY-----"


@pytest.fixture
def run(tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """`runs/tiny`, as a stranger sends it."""
    monkeypatch.chdir(tmp_path)
    made = RunDir.create(Recipe.model_validate(tiny_recipe))
    for folder in ("pictures", "export"):
        (made.path / folder).mkdir()
    return made


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's files outside any run: one to read, one to write, one named like a run file."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("key", ".bashrc", ".last.pt.x1y2.tmp"):
        (folder / name).write_bytes(SECRET)
    return folder


def untouched(home: Path) -> bool:
    return len(list(home.iterdir())) == 3 and all(f.read_bytes() == SECRET for f in home.iterdir())


LINKS = {
    ".lock": ".bashrc",
    "log.jsonl": ".bashrc",
    "finetune.jsonl": ".bashrc",
    "manifest.json": "key",
    "evaluation.json": "key",
    "report.html": ".bashrc",
    "checkpoints": "",
    "export": "",
    "tensorboard": "",
    "pictures/x.png": "key",
    "pictures/deep/x.png": "key",
    "export/tiny.fp32.onnx": "key",
}


@pytest.mark.parametrize("name", LINKS)
def test_a_link_that_leaves_the_run_is_refused_in_one_line(
    run: RunDir, home: Path, name: str
) -> None:
    link = run.path / name
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_dir():
        link.rmdir()
    link.symlink_to(os.path.relpath(home / LINKS[name], link.parent))

    for use in (RunDir.resolve, lambda path: report(RunDir(path)), start_training):
        with pytest.raises(RunError, match="is a link that leaves the run folder") as raised:
            use(run.path)
        assert str(link) in raised.value.message
        assert f"rm {link}" in raised.value.hint

    assert untouched(home)
    assert not (run.path / "report.html").is_file() or name == "report.html"


@pytest.mark.parametrize("name", ["finetune.json", "log.jsonl", "model.safetensors", "export"])
def test_a_folder_for_a_file_and_a_file_for_a_folder_are_refused_before_training(
    run: RunDir, name: str
) -> None:
    place = run.path / name
    if name == "export":
        place.rmdir()
        place.touch()
    else:
        place.mkdir()

    with pytest.raises(RunError, match="is a (folder, not a file|file, not a folder)") as raised:
        start_training(run.path)

    assert str(place) in raised.value.message


def test_a_log_that_is_too_large_is_an_error_of_the_run(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hgkd_edge.engine.journal.MAX_LOG_BYTES", 5)
    run.log_file.write_text('{"step": 1}\n')

    with pytest.raises(TrainingError, match=r"log\.jsonl has 12 bytes"):
        _truncate(run.log_file, 1)

    assert run.log_file.read_text() == '{"step": 1}\n'


def start_training(path: Path) -> None:
    with RunDir(path).at_work():
        pytest.fail("it began")


def test_a_resumed_run_empties_nobodys_file(
    run: RunDir, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.path / ".lock").symlink_to(home / ".bashrc")
    monkeypatch.setattr(sys, "argv", ["hgkd-edge", "distill", "runs/tiny/recipe.yaml", "--resume"])
    capsys.readouterr()

    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: runs/tiny/.lock: is a link that leaves the run folder")
    assert hint == "hint: remove it (rm runs/tiny/.lock), or put a copy in its place"
    assert untouched(home)


def test_a_new_run_in_a_prepared_folder_follows_no_link(run: RunDir, home: Path) -> None:
    prepared = Path("prepared")
    prepared.mkdir()
    (prepared / ".lock").symlink_to(home / ".bashrc")

    with pytest.raises(RunError, match="is a link that leaves"):
        RunDir.create(run.recipe(), prepared)

    assert untouched(home)


HARD = ["log.jsonl", "finetune.jsonl", ".lock", "report.html", "manifest.json", "evaluation.json"]


@pytest.mark.parametrize("name", HARD)
def test_a_file_that_is_also_somebodys_is_replaced_and_not_written_to(
    run: RunDir, home: Path, name: str
) -> None:
    """Hard links look like regular files, so files are first written under another name."""
    file = run.path / name
    file.unlink(missing_ok=True)
    (home / ".bashrc").write_bytes(b"{}\n")
    file.hardlink_to(home / ".bashrc")

    _truncate(file, 0) if name.endswith(".jsonl") else None
    with contextlib.suppress(RunError), RunDir(run.path).at_work():
        if name.endswith(".jsonl"):
            with _open_log(file) as log:
                log.write("ours\n")
        write_json(run.path / "evaluation.json", {})
        run.update_manifest(Circumstances(seed=1))
        report(run)

    assert (home / ".bashrc").read_bytes() == b"{}\n"


@pytest.mark.parametrize("shape", ["loop", "chain", "many"])
def test_links_in_circles_are_one_line_or_harmless(run: RunDir, shape: str) -> None:
    if shape == "loop":
        (run.path / "pictures" / "a").symlink_to("a")
    elif shape == "chain":
        (run.path / "pictures" / "up").symlink_to("..")
    else:
        for number in range(60):
            (run.path / "pictures" / f"{number}.png").symlink_to(f"{number + 1}.png")

    if shape == "loop":
        with pytest.raises(RunError, match="a: is a link that leads in a circle"):
            report(RunDir.resolve(run.path))
    else:
        assert report(RunDir.resolve(run.path)).is_file()


def test_predictions_replace_a_link_and_do_not_follow_it(
    run: RunDir, home: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "out" / "0000-a.png"
    picture.parent.mkdir()
    picture.symlink_to(home / ".bashrc")

    save_picture(Image.new("RGB", (8, 8)), picture)

    assert untouched(home)
    assert not picture.is_symlink()


def test_a_bench_of_a_folder_reads_no_file_outside_it(run: RunDir, home: Path) -> None:
    (run.export_dir / "tiny.fp32.onnx").symlink_to(home / "key")

    with pytest.raises(RunError, match="is a link that leaves"):
        resolve_models([run.path])


def test_a_link_that_comes_after_the_check_is_not_followed_either(run: RunDir, home: Path) -> None:
    link = run.path / "log.jsonl"
    link.symlink_to(home / ".bashrc")

    with pytest.raises(OSError, match="symbolic link"):
        _open_log(link)

    assert untouched(home)


def test_links_within_a_run_to_a_run_and_of_trackers_stay_fine(
    run: RunDir, home: Path, tmp_path: Path
) -> None:
    (run.path / "pictures" / "copy.png").symlink_to("../recipe.yaml")
    (run.path / "wandb").mkdir()
    (run.path / "wandb" / "debug.log").symlink_to(home / "key")  # as wandb leaves it
    stored = run.path.rename(tmp_path / "stored")
    run.path.symlink_to(stored)
    RunDir(run.path).become_latest()

    for name in ("runs/tiny", "tiny", None):
        found = RunDir.resolve(name)
        assert found.recipe().name == "tiny"
        with found.at_work():
            pass
    assert report(RunDir.resolve()).is_file()


@pytest.mark.parametrize("name", ["recipe.yaml", "log.jsonl", "manifest.json", "pictures/x.png"])
def test_a_pipe_in_a_run_is_refused_and_not_waited_for(run: RunDir, name: str) -> None:
    (run.path / name).unlink(missing_ok=True)
    os.mkfifo(run.path / name)

    with pytest.raises(RunError):
        report(RunDir.resolve(run.path))


def test_a_pipe_or_a_device_is_never_opened_as_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError), open_regular(path, os.O_RDONLY):  # noqa: PT011
            pytest.fail("it was opened")


def engine_of(network: Path) -> Path:
    engine = network.with_suffix(".plan")
    engine.write_bytes(b"machine code")
    return engine


def write_weights(path: Path, value: float) -> None:
    path.parent.mkdir(exist_ok=True)
    save_file({"w": np.full(4, value, np.float32)}, path)


LOADS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "backbone": ("backbone.safetensors", read_backbone),
    "model": ("model.safetensors", read_model),
    "predict, PyTorch": ("model.safetensors", open_task_model),
    "predict, ONNX": ("export/tiny.fp32.onnx", open_task_model),
    "predict, OpenVINO": ("export/tiny.fp32.xml", open_task_model),
    "predict, TensorRT": ("export/tiny.fp32.plan", open_task_model),
    "predict, what an engine was built from": (
        "export/tiny.fp32.onnx",
        lambda path: open_task_model(engine_of(path)),
    ),
    "bench": ("export/tiny.fp32.onnx", lambda path: resolve_models([path])),
    "bench, its images": (
        "export/images.npy",
        lambda path: _with_kept_images(BenchOptions(models=(path.parent.parent,)), []),
    ),
    "a new branch": ("backbone.safetensors", lambda path: RunDir(path.parent).branch("x")),
}


@pytest.fixture(params=LOADS)
def swapped(run: RunDir, request: pytest.FixtureRequest) -> tuple[RunDir, Path, Any]:
    """A run in which a recorded file was replaced by zeros, and the command that loads it."""
    name, load = LOADS[request.param]
    file = run.path / name
    write_weights(file, 1.0)
    run.add_artifact(file)
    write_weights(file, 0.0)
    return run, file, load


def test_a_swapped_file_is_not_loaded_in_silence(swapped: tuple[RunDir, Path, Any]) -> None:
    _, file, load = swapped

    with pytest.raises(RunError, match="is not the file that .*manifest.json records") as raised:
        load(file)

    assert str(file) in raised.value.message
    assert "if you replaced it on purpose, delete the entry" in raised.value.hint


def test_the_hint_for_a_file_replaced_on_purpose_works(
    swapped: tuple[RunDir, Path, Any],
) -> None:
    run, file, load = swapped
    artifacts = run.manifest().artifacts
    del artifacts[file.relative_to(run.path).as_posix()]
    run.update_manifest(ManifestRecord(artifacts=artifacts))

    printed = ""
    try:
        load(file)
    except Exception as error:  # not a real network: later errors do not matter
        printed = str(error)
    assert "manifest.json records" not in printed


@pytest.mark.parametrize(
    ("network", "part"),
    [
        ("tiny.xml", "tiny.bin"),
        ("tiny.onnx", "tiny.onnx.data"),
        ("tiny.onnx", "weights.bin"),
        ("tiny.onnx", "parts/any name"),
    ],
)
@pytest.mark.parametrize("load", [open_task_model, require_recorded])
def test_the_other_files_of_a_network_are_checked_too(
    run: RunDir, network: str, part: str, load: Callable[[Path], object]
) -> None:
    path, weights = run.export_dir / network, run.export_dir / part
    weights.parent.mkdir(exist_ok=True)
    if network.endswith(".onnx"):
        save_network(path, location=part)
    else:
        path.write_text("<net/>")
        write_weights(weights, 1.0)
    for file in (path, weights):
        run.add_artifact(file)
    weights.write_bytes(bytes(weights.stat().st_size))

    with pytest.raises(RunError, match=f"{part}: is not the file that"):
        load(path)


@pytest.mark.parametrize("name", ["backbone.safetensors", "export/tiny.fp32.onnx"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_link_in_the_place_of_a_recorded_file_is_not_loaded_in_silence(
    run: RunDir, home: Path, name: str, inside: bool
) -> None:
    file = run.path / name
    write_weights(file, 1.0)
    run.add_artifact(file)
    other = (run.path if inside else home) / "other"
    write_weights(other, 0.0)
    file.unlink()
    file.symlink_to(other.resolve())

    with pytest.raises(RunError, match="is not the file that .*manifest.json records"):
        require_recorded(file)


def test_a_link_in_the_place_of_the_folder_of_a_recorded_file_is_not_followed_in_silence(
    run: RunDir,
) -> None:
    file = run.export_dir / "tiny.fp32.onnx"
    write_weights(file, 1.0)
    run.add_artifact(file)
    run.export_dir.rename(run.path / "moved")
    run.export_dir.symlink_to("moved")
    write_weights(file, 0.0)

    with pytest.raises(RunError, match="is not the file that .*manifest.json records"):
        require_recorded(file)


def test_a_link_from_elsewhere_to_a_recorded_file_is_checked_as_that_file(
    run: RunDir, tmp_path: Path
) -> None:
    write_weights(run.backbone_file, 1.0)
    run.add_artifact(run.backbone_file)
    write_weights(run.backbone_file, 0.0)
    (tmp_path / "mine.safetensors").symlink_to(run.backbone_file.resolve())

    with pytest.raises(RunError, match="is not the file that .*manifest.json records"):
        require_recorded(tmp_path / "mine.safetensors")


def test_a_load_says_which_files_it_compared_and_says_it_once(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_network(run.export_dir / "tiny.onnx")
    for file in (path, run.export_dir / "net.onnx.data"):
        run.add_artifact(file)
    capsys.readouterr()

    for _ in range(2):
        resolve_models([path])

    printed = [line for line in capsys.readouterr().err.splitlines() if "verified" in line]
    assert printed == ["verified against runs/tiny/manifest.json: tiny.onnx, net.onnx.data"]


def test_a_load_of_what_nobody_recorded_claims_nothing(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()

    resolve_models([save_network(run.export_dir / "tiny.onnx")])

    assert "verified" not in capsys.readouterr().err


@pytest.mark.parametrize("artifacts", [3, [], {"backbone.safetensors": 3}, {"x": {"sha256": 3}}])
def test_a_forged_manifest_is_refused_in_one_line(run: RunDir, artifacts: object) -> None:
    write_json(run.manifest_file, {"artifacts": artifacts})
    write_weights(run.backbone_file, 1.0)

    with pytest.raises(RunError, match=r"manifest\.json: is damaged: artifacts") as raised:
        read_backbone(run.backbone_file)

    assert "\n" not in raised.value.message


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_files_have_the_mode_that_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", {})
        with atomic_write(tmp_path / "a.safetensors") as temporary:
            write_weights(temporary, 1.0)
        _open_log(tmp_path / "log.jsonl").close()
    finally:
        os.umask(before)

    assert {stat.S_IMODE(f.stat().st_mode) for f in tmp_path.iterdir()} == {mode}
