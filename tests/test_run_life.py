"""A command that fails changes nothing for the next one; one that succeeds is the latest."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from hgkd_edge.errors import DataError, Interrupted, RunError
from hgkd_edge.manifest_record import Circumstances, Distilled, ManifestRecord
from hgkd_edge.recipe import Recipe, load_recipe
from hgkd_edge.rundir import RUNS, RunDir


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_recipe_file: Path) -> Recipe:
    monkeypatch.chdir(tmp_path)
    return load_recipe(tiny_recipe_file)


@pytest.fixture
def good(recipe: Recipe) -> RunDir:
    """`runs/tiny`, distilled and the latest."""
    run = RunDir.create(recipe)
    with run.at_work():
        run.log_file.write_text("{}\n")
        run.backbone_file.write_text("weights")
        run.update_manifest(ManifestRecord(result=Distilled()))
        run.add_artifact(run.backbone_file)
    return run


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refuse(run: RunDir, error: BaseException, *written: str) -> None:
    """A training in `run` that writes some files and then fails before its first step."""
    with contextlib.suppress(type(error)), run.at_work():
        for name in written:
            file = run.path / name
            file.parent.mkdir(exist_ok=True)
            file.touch()
        raise error


BEGINNINGS: dict[str, Callable[[RunDir], RunDir]] = {
    "distill": lambda run: RunDir.create(run.recipe()),
    "distill --run": lambda run: RunDir.create(run.recipe(), Path("mine")),
    "finetune, in a branch": lambda run: run.branch("classify"),
}


@pytest.mark.parametrize("begin", BEGINNINGS.values(), ids=BEGINNINGS)
@pytest.mark.parametrize(
    "error", [DataError("no labels"), KeyboardInterrupt(), SystemExit(143), MemoryError()], ids=repr
)
def test_a_run_that_never_trained_is_gone_and_the_latest_is_what_it_was(
    good: RunDir, begin: Callable[[RunDir], RunDir], error: BaseException
) -> None:
    before = tree(Path())

    refuse(begin(good), error, "manifest.json", "log.jsonl", "tensorboard/events", "finetune.yaml")

    assert tree(Path()) == before
    assert sorted(entry.name for entry in RUNS.iterdir()) == ["latest", "tiny"]
    assert RunDir.resolve().path == good.path


def test_sigterm_before_the_first_step_cleans_up_as_ctrl_c_does(good: RunDir) -> None:
    before = tree(Path())

    with pytest.raises(SystemExit) as ended, RunDir.create(good.recipe()).at_work():
        os.kill(os.getpid(), signal.SIGTERM)

    assert ended.value.code == 143
    assert tree(Path()) == before
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_finetuning_that_never_trained_leaves_the_run_it_was_for_as_it_was(good: RunDir) -> None:
    before = tree(good.path)

    run = RunDir.resolve(good.path)
    with pytest.raises(DataError), run.at_work():
        run.update_manifest(ManifestRecord(finetune=Circumstances(seed=0)))
        run.finetune_file.touch()
        run.finetune_log_file.touch()
        raise DataError("no labels")

    assert tree(good.path) == before
    assert not good.holds_finetuning


@pytest.mark.parametrize("progress", ["checkpoints/last.pt", "log.jsonl", "model.safetensors"])
def test_what_was_trained_stays_whatever_happens_then(recipe: Recipe, progress: str) -> None:
    run = RunDir.create(recipe)

    with pytest.raises(KeyboardInterrupt), run.at_work():
        (run.path / progress).parent.mkdir(exist_ok=True)
        (run.path / progress).write_text("something")
        raise KeyboardInterrupt

    assert (run.path / progress).is_file()
    assert not (RUNS / "latest").exists(), "there is nothing to use yet"


def test_a_run_that_the_user_should_resume_stays(recipe: Recipe) -> None:
    run = RunDir.create(recipe)  # stopped while its teacher is pre-trained: saved in the cache

    refuse(run, Interrupted("stopped", hint=f"continue: {run.resume_command}"))

    assert run.recipe_file.is_file()


def test_a_folder_that_was_there_before_is_only_emptied_of_what_came_in(recipe: Recipe) -> None:
    Path("mine").mkdir()
    Path("mine/recipe.yaml").write_text(recipe.to_yaml())

    refuse(RunDir.create(recipe, Path("mine")), DataError("no images"), "log.jsonl")

    assert [entry.name for entry in Path("mine").iterdir()] == ["recipe.yaml"]


def test_one_who_comes_second_neither_writes_nor_removes_anything(recipe: Recipe) -> None:
    first = RunDir.create(recipe, Path("mine"))
    other = recipe.model_copy(update={"seed": 5})
    with first.at_work():
        before = tree(Path("mine"))

        with pytest.raises(RunError, match="another process"):
            RunDir.create(other, Path("mine"))

        assert tree(Path("mine")) == before
        first.log_file.write_text("{}\n")


def test_a_folder_that_cannot_be_filled_is_not_left_half_made(
    good: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)

    with pytest.raises(RunError, match="cannot be written: No space"):
        RunDir.create(good.recipe())
    with pytest.raises(RunError):
        good.branch("classify")

    assert sorted(entry.name for entry in RUNS.iterdir()) == ["latest", "tiny"]


def test_the_latest_follows_what_is_made_in_an_older_run(good: RunDir) -> None:
    newer = RunDir.create(good.recipe())
    newer.backbone_file.touch()
    newer.add_artifact(newer.backbone_file)
    assert RunDir.resolve().path == newer.path

    exported = good.path / "export" / "tiny.fp32.onnx"
    exported.parent.mkdir()
    exported.touch()
    RunDir.resolve("tiny").add_artifact(exported)

    assert RunDir.resolve().path == good.path


def test_a_second_run_of_one_recipe_says_which_folder_it_takes_and_why(recipe: Recipe) -> None:
    first = RunDir.create(recipe)
    while_unfinished = RunDir.create(recipe).why_this_folder()
    first.backbone_file.touch()
    once_finished = RunDir.create(recipe).why_this_folder()

    assert first.why_this_folder() == ""
    assert while_unfinished == f"runs/tiny is unfinished; to continue it: {first.resume_command}"
    assert once_finished == "runs/tiny already exists"


def test_a_finished_run_is_what_resume_means_only_when_none_is_unfinished(good: RunDir) -> None:
    good.branch("classify")

    assert RunDir.unfinished(good.recipe()).path == good.path
    stopped = RunDir.create(good.recipe())
    assert RunDir.unfinished(good.recipe()).path == stopped.path


def test_a_copied_backbone_is_never_distilled_over(good: RunDir) -> None:
    branch = good.branch("classify")

    with pytest.raises(RunError, match="has a backbone and no checkpoint"):
        branch.require_resumable()


def test_a_latest_that_is_gone_names_what_is_there(good: RunDir) -> None:
    (RUNS / "latest").unlink()
    (RUNS / "latest").symlink_to("deleted")

    with pytest.raises(RunError, match="name a run, such as runs/tiny"):
        RunDir.resolve()
