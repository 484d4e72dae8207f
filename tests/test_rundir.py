from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hgkd_edge.errors import RunError
from hgkd_edge.files import atomic_write, file_sha256
from hgkd_edge.manifest_record import Artifact
from hgkd_edge.recipe import load_recipe
from hgkd_edge.rundir import RunDir


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_latest_run_is_found_by_default(elsewhere: Path, tiny_recipe_file: Path) -> None:
    recipe = load_recipe(tiny_recipe_file)
    first, second = RunDir.create(recipe), RunDir.create(recipe)
    second.become_latest()

    found = RunDir.resolve()

    assert first.path == Path("runs/tiny")
    assert second.path == Path("runs/tiny-2")
    assert found.path == second.path
    assert found.recipe() == recipe


def test_a_run_elsewhere_is_the_latest_too(elsewhere: Path, tiny_recipe_file: Path) -> None:
    made = RunDir.create(load_recipe(tiny_recipe_file), Path("out/here"))
    made.become_latest()

    assert RunDir.resolve().path == made.path


def test_a_run_is_found_by_its_name(elsewhere: Path, tiny_recipe_file: Path) -> None:
    RunDir.create(load_recipe(tiny_recipe_file))

    assert RunDir.resolve("tiny").path == Path("runs/tiny")


def test_a_run_is_found_next_to_a_folder_of_its_name(
    elsewhere: Path, tiny_recipe_file: Path
) -> None:
    Path("tiny").mkdir()  # of images, after which `recipes new` names the run
    with pytest.raises(RunError, match="'tiny' is not a run: it has no recipe"):
        RunDir.resolve("tiny")

    RunDir.create(load_recipe(tiny_recipe_file))

    assert RunDir.resolve("tiny").path == Path("runs/tiny")


def test_a_folder_in_use_is_never_written_over(elsewhere: Path, tiny_recipe_file: Path) -> None:
    recipe = load_recipe(tiny_recipe_file)
    RunDir.create(recipe, Path("mine")).log_file.touch()

    with pytest.raises(RunError, match="not empty"):
        RunDir.create(recipe, Path("mine"))
    with pytest.raises(RunError, match=f"'{tiny_recipe_file}' is not a folder"):
        RunDir.create(recipe, tiny_recipe_file)


def test_runs_that_is_a_broken_link_is_an_error(elsewhere: Path, tiny_recipe_file: Path) -> None:
    Path("runs").symlink_to("an unmounted disk")

    with pytest.raises(RunError, match="'runs/tiny' cannot be written: File exists"):
        RunDir.create(load_recipe(tiny_recipe_file))


def test_a_run_that_ended_before_it_trained_does_not_block_its_folder(
    elsewhere: Path, tiny_recipe_file: Path
) -> None:
    RunDir.create(load_recipe(tiny_recipe_file, ["data.path=/nowhere"]), Path("mine"))

    again = RunDir.create(load_recipe(tiny_recipe_file), Path("mine"))

    assert again.recipe() == load_recipe(tiny_recipe_file)


def test_a_run_killed_while_it_wrote_its_recipe_does_not_block_its_folder(
    elsewhere: Path, tiny_recipe_file: Path
) -> None:
    Path("mine").mkdir()
    Path("mine/.recipe.yaml.0123456789abcdef.tmp").touch()

    RunDir.create(load_recipe(tiny_recipe_file), Path("mine"))

    assert {path.name for path in Path("mine").iterdir()} == {"recipe.yaml", ".lock"}


def test_runs_begun_at_once_never_share_a_folder(elsewhere: Path, tiny_recipe_file: Path) -> None:
    recipe = load_recipe(tiny_recipe_file)

    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: RunDir.create(recipe).path, range(16)))

    assert len(set(runs)) == 16


def test_the_run_to_resume_is_the_newest_of_its_recipe_that_is_not_done(
    elsewhere: Path, tiny_recipe_file: Path
) -> None:
    recipe, other = (load_recipe(tiny_recipe_file, [f"seed={seed}"]) for seed in (0, 1))
    done, stopped, foreign = (RunDir.create(made) for made in (recipe, recipe, other))
    done.backbone_file.touch()
    for age, run in enumerate((foreign, stopped, done)):
        os.utime(run.recipe_file, (1e9 - age, 1e9 - age))

    assert RunDir.unfinished(recipe).path == stopped.path
    assert RunDir.unfinished(load_recipe(tiny_recipe_file, ["seed=2"])).path == done.path


def test_one_process_at_a_time_trains_in_a_folder(elsewhere: Path, tiny_recipe_file: Path) -> None:
    run = RunDir.create(load_recipe(tiny_recipe_file))

    with run.locked(), pytest.raises(RunError, match="another process"), run.locked():
        pass

    half = run.checkpoint_file.parent / ".last.pt.x1y2.tmp"  # as a killed process leaves it
    half.parent.mkdir()
    half.touch()
    with run.locked():  # the lock is released with its holder
        assert not half.exists()


def test_a_branch_that_cannot_be_made_does_not_suggest_run(
    elsewhere: Path, tiny_recipe_file: Path
) -> None:
    run = RunDir.create(load_recipe(tiny_recipe_file), Path("x" * 250))

    with pytest.raises(RunError, match="File name too long") as raised:
        run.branch("classify")

    assert "--run" not in raised.value.hint


def test_a_branch_has_the_backbone_and_a_separate_folder(
    elsewhere: Path, tiny_recipe_file: Path
) -> None:
    run = RunDir.create(load_recipe(tiny_recipe_file))
    run.backbone_file.write_text("weights")

    branch = run.branch("segment")

    assert branch.path == Path("runs/tiny-segment")
    assert branch.backbone_file.read_text() == "weights"
    assert branch.recipe() == run.recipe()


@pytest.mark.parametrize(
    ("folder", "named"),
    [("runs/tiny-2", "runs/tiny-2-segment"), ("out/my dogs", "out/my dogs-segment")],
)
def test_a_branch_is_named_after_the_folder_and_lies_next_to_it(
    elsewhere: Path, tiny_recipe_file: Path, folder: str, named: str
) -> None:
    run = RunDir.create(load_recipe(tiny_recipe_file), Path(folder))
    run.backbone_file.write_text("weights")

    assert RunDir.resolve(folder).branch("segment").path == Path(named)
    assert RunDir.resolve(folder).branch("segment").path == Path(f"{named}-2")


def test_a_damaged_manifest_is_one_clear_error(elsewhere: Path, tiny_recipe_file: Path) -> None:
    run = RunDir.create(load_recipe(tiny_recipe_file))
    run.manifest_file.write_text("{")

    with pytest.raises(RunError, match="manifest.json: is damaged"):
        run.manifest()


def test_what_is_no_run_is_refused(elsewhere: Path) -> None:
    (elsewhere / "folder").mkdir()

    with pytest.raises(RunError, match="no recipe.yaml"):
        RunDir.resolve("folder")
    with pytest.raises(RunError, match="hgkd-edge distill"):
        RunDir.resolve()


def test_a_run_is_not_resumed_with_another_recipe(elsewhere: Path, tiny_recipe_file: Path) -> None:
    run = RunDir.create(load_recipe(tiny_recipe_file))

    with pytest.raises(RunError, match="train.epochs, train.lr"):
        run.require_same_recipe(load_recipe(tiny_recipe_file, ["train.lr=1", "train.epochs=1"]))


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "artifact"
    file.write_text("old")

    with pytest.raises(RuntimeError), atomic_write(file) as temporary:
        temporary.write_text("half of the new")
        raise RuntimeError

    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), RuntimeError("I/O error: no space (os error 28)")],
    ids=["Python", "a library in Rust"],
)
def test_a_write_that_fails_names_the_file(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OSError, match="artifact") as raised, atomic_write(tmp_path / "artifact"):
        raise error

    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename == str(tmp_path / "artifact")


def test_the_manifest_says_what_an_artifact_is_and_what_it_was_made_from(
    elsewhere: Path, tiny_recipe_file: Path
) -> None:
    run = RunDir.create(load_recipe(tiny_recipe_file))
    source, made = run.path / "a", run.path / "b"
    source.write_text("a")
    made.write_text("b")

    run.add_artifact(made, made_from=[source])

    entry = run.manifest().artifacts["b"]
    assert entry == Artifact(sha256=file_sha256(made), made_from=["a"])
