"""The next command that each command suggests: run, folder, and whether one is suggested."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from hgkd_edge.cli import main
from tests.started import COMMAND, Started

ROOT = Path(__file__).parent.parent
QUICK = ("train.epochs=1", "train.trackers=[]")


class Done(NamedTuple):
    """How a command ended, and what it printed."""

    returncode: object
    stdout: str
    stderr: str


Hgkd = Callable[..., Done]


@pytest.fixture
def hgkd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Hgkd:
    """The command line in `tmp_path`, in this process: torch is loaded once."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, sets: tuple[str, ...] = ()) -> Done:
        options = [part for setting in sets for part in ("--set", setting)]
        monkeypatch.setattr(sys, "argv", ["hgkd-edge", *arguments, *options])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert "bug" not in printed.err
        return Done(ended.value.code, printed.out, printed.err)

    return run


@pytest.fixture
def recipe(tiny_recipe_file: Path) -> str:
    return str(tiny_recipe_file)


def runs_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in (folder / "runs").iterdir())


def test_runs_side_by_side_are_never_mixed_up(hgkd: Hgkd, recipe: str, tmp_path: Path) -> None:
    """Two distillations, then everything else in the first: each line names its run."""
    first = hgkd("distill", recipe, sets=QUICK)
    second = hgkd("distill", recipe, sets=QUICK)
    tuned = hgkd("finetune", "tiny", sets=QUICK)

    assert first.stderr.startswith("run folder: runs/tiny\n")
    assert second.stderr.startswith("run folder: runs/tiny-2 (runs/tiny already exists)\n")
    for done, run in ((first, "runs/tiny"), (second, "runs/tiny-2"), (tuned, "runs/tiny")):
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()[-3:]
        assert [line[:16] for line in lines] == ["next: hgkd-edge ", *["      hgkd-edge "] * 2]
        assert all(run in line.split() for line in lines)
    assert "installed" not in first.stderr + tuned.stderr, "Accelerate, of trackers: []"
    assert (tmp_path / "runs" / "latest").readlink() == Path("tiny")

    before = (tmp_path / "runs" / "tiny" / "model.safetensors").stat().st_mtime_ns
    for command in (["distill", recipe, "--resume"], ["finetune", "tiny", "--resume"]):
        sets = QUICK if command[0] == "distill" else ()
        again = hgkd(*command, "--json", sets=sets)
        assert again.returncode == 0, again.stderr
        assert "is finished: nothing to resume" in again.stderr
        assert json.loads(again.stdout)
    assert (tmp_path / "runs" / "tiny" / "model.safetensors").stat().st_mtime_ns == before

    empty = tmp_path / "empty" / "images"
    empty.mkdir(parents=True)
    refused = hgkd("finetune", "tiny-2", "--data", str(empty))
    branched = hgkd("finetune", "tiny", "--task", "detect", "--data", str(empty))

    assert refused.returncode == branched.returncode == 2
    assert runs_in(tmp_path) == ["latest", "tiny", "tiny-2"]
    assert (tmp_path / "runs" / "latest").readlink() == Path("tiny")
    assert not (tmp_path / "runs" / "tiny-2" / "finetune.yaml").exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_stopped_before_the_first_step_nothing_is_left(
    recipe: str, tmp_path: Path, sent: signal.Signals
) -> None:
    waits = (
        "import time, hgkd_edge.distillation.setup as verb; "
        "verb.open_splits = lambda config: (open('waiting', 'w').write('\\n'), time.sleep(60)); "
    )
    process = Started("distill", recipe, code=waits + COMMAND, folder=tmp_path)
    process.wait_for(tmp_path / "waiting")
    assert runs_in(tmp_path) == ["tiny"]

    time.sleep(0.1)
    process.send_signal(sent)
    ended = process.end(timeout=30)

    assert ended.returncode == 128 + sent
    assert "error" not in ended.stderr
    assert ended.stderr.splitlines()[-1] == "stopped"
    assert runs_in(tmp_path) == []


def test_features_that_learned_nothing_are_reported_as_no_better(hgkd: Hgkd, recipe: str) -> None:
    hgkd("distill", recipe, sets=(*QUICK, "train.lr=1e-9"))
    shown = hgkd("evaluate", "tiny")
    scored = hgkd("evaluate", "--json")

    *_, warning, following, _ = shown.stdout.splitlines()
    assert warning.startswith("warning: k-NN ")
    assert "the baseline: " in warning
    assert following.startswith("next: hgkd-edge finetune runs/tiny")
    result = json.loads(scored.stdout)
    assert result["warnings"] == [warning.removeprefix("warning: ")]
    assert result["interval_method"].startswith("Wilson")
    low, high = result["intervals"]["distilled"]["knn"]
    assert low <= result["distilled"]["knn"] <= high


def test_after_pretraining_the_distillation_keeps_the_changes(hgkd: Hgkd, recipe: str) -> None:
    done = hgkd("pretrain", recipe, sets=("teacher.pretrain.epochs=1", "seed=1"))

    distill = f"next: hgkd-edge distill {recipe} --set teacher.pretrain.epochs=1 --set seed=1"
    assert done.stdout.splitlines()[-1] == distill


def test_suggested_commands_quote_the_folders_that_they_name() -> None:
    """`{run.quoted}` and `shlex.quote`, never the bare path: folders have spaces."""
    bare = re.compile(r"hgkd-edge [a-z]+[^\"\n]*\{[\w.]+\.path\}")
    sources = [*(ROOT / "hgkd_edge").rglob("*.py"), *(ROOT / "exporters").rglob("*.py")]

    assert not [
        f"{file.name}: {line.strip()}"
        for file in sources
        for line in file.read_text(encoding="utf-8").splitlines()
        if bare.search(line)
    ]
