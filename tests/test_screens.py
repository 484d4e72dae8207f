"""Every screen at 80 columns, compared with the text under `tests/screens`.

After a change on purpose: `HGKD_EDGE_UPDATE_SCREENS=1 pytest tests/test_screens.py`, then read the
difference in git.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from rich.text import Text
from typer.main import get_command
from typer.testing import CliRunner

from hgkd_edge.bench import records
from hgkd_edge.bench.compare import Comparison, Row
from hgkd_edge.bench.tables import comparison_view, fleet_view, session_view
from hgkd_edge.cli import app, main
from hgkd_edge.console import make_console
from hgkd_edge.export_record import ExportRecord
from hgkd_edge.manifest_record import Distilled
from hgkd_edge.recipe import Recipe
from hgkd_edge.rundir import RunDir
from hgkd_edge.score_records import FeatureRecord, FinetuneRecord, TaskRecord
from hgkd_edge.video.predict import Summary
from tests import screen_records as record
from tests.bench.conftest import build_convnet

SCREENS = Path(__file__).parent / "screens"
WIDTH = 80
CLI = get_command(app)


def commands() -> list[str]:
    """Every command with a help text, "" for the program itself."""
    groups = {name: getattr(node, "commands", {}) for name, node in CLI.commands.items()}  # type: ignore[attr-defined]
    return ["", *groups, *(f"{name} {sub}" for name, subs in groups.items() for sub in subs)]


PLAIN = {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}


def run(*arguments: str, typed: str = "") -> str:
    """What a command prints on a terminal of 80 columns, without colors."""
    done = CliRunner(env=PLAIN).invoke(app, arguments, input=typed, prog_name="hgkd-edge")
    assert done.exit_code == 0, done.output
    return done.output if typed else done.stdout


def printed(lines: Iterable[Any], **options: Any) -> str:
    """Lines and tables as `cli.output.show` prints them."""
    stream = io.StringIO()
    console = make_console(file=stream, width=WIDTH, **options)
    for line in lines:
        console.print(line, soft_wrap=isinstance(line, (str, Text)))
    return stream.getvalue()


def tables() -> dict[str, Callable[[], Iterable[Any]]]:
    """Screens of results, from records as the commands leave them."""
    from hgkd_edge import tables as shared
    from hgkd_edge.api.distilling import checked_lines, dry_run_lines
    from hgkd_edge.api.model import Prediction
    from hgkd_edge.api.run import _finetuned_lines, distilled_lines
    from hgkd_edge.api.streaming import video_lines
    from hgkd_edge.cli import demo, distill, finetune
    from hgkd_edge.comparison.view import comparison_lines
    from hgkd_edge.demo import DemoRecord
    from hgkd_edge.embedding import Summary as Embedded
    from hgkd_edge.pipeline import PipelineTimes

    session = records.Session.model_validate(record.SESSION)
    compared = Comparison(
        a="a.json",
        b="b.json",
        rows=[Row(**row) for row in record.RATIOS],
        only_a=0,
        only_b=2,
    )
    return {
        "distill": lambda: [
            *distilled_lines(record.RUN, Distilled.model_validate(record.DISTILLED)),
            *distill.next_step(record.RUN, checked=False),
        ],
        "distill-check": lambda: [
            *checked_lines(record.checked()),
            *distill.next_step(record.RUN, checked=True),
        ],
        "distill-dry-run": lambda: dry_run_lines(record.dry_run()),
        "finetune": lambda: [
            *_finetuned_lines(FinetuneRecord.model_validate(record.FINETUNED)),
            *finetune.next_step(record.RUN, qat=True),
        ],
        "demo": lambda: [demo._table(DemoRecord.model_validate(record.DEMO))],
        "evaluate-features": lambda: [
            shared.score_table(FeatureRecord.model_validate(record.FEATURES))
        ],
        "evaluate-model": lambda: [shared.task_table(TaskRecord.model_validate(record.SCORES))],
        "export": lambda: shared.export_lines(ExportRecord.model_validate(record.EXPORT)),
        "predict": lambda: map(str, map(Prediction, record.PREDICTIONS)),
        "predict-video": lambda: video_lines(Summary(**record.VIDEO)),
        "embed": Embedded(**record.FEATURES_FILE).lines,
        "bench": lambda: [session_view(session)],
        "bench-fleet": lambda: [fleet_view([session], record.REFUSALS)],
        "bench-pipeline": lambda: shared.pipeline_lines(
            PipelineTimes.model_validate(record.PIPELINE)
        ),
        "bench-compare": lambda: [comparison_view(compared)],
        "compare": lambda: comparison_lines(record.comparison(), Path("runs/shop/comparison.svg")),
    }


def without_root(shown: str) -> str:
    """A screen without this machine's path of the repository."""
    return shown.replace(f"{SCREENS.parents[1]}/", "")


def check(name: str, shown: str) -> None:
    """Compare a screen with its file, or write it."""
    shown = "\n".join(line.rstrip() for line in shown.splitlines()) + "\n"
    file = SCREENS / f"{name}.txt"
    if os.environ.get("HGKD_EDGE_UPDATE_SCREENS"):
        file.write_text(shown, encoding="utf-8")
    assert file.is_file(), "a new screen: read it, and run with HGKD_EDGE_UPDATE_SCREENS=1"
    assert shown == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", commands())
def test_help(command: str) -> None:
    shown = run(*command.split(), "--help")

    check(f"help-{command or 'hgkd-edge'}".replace(" ", "-"), shown)
    assert all(len(line) <= WIDTH for line in shown.splitlines())
    assert not re.search(r"^  .*\.\.\.$", shown, re.MULTILINE), "a summary is cut"
    assert not re.search(r"<\w|[{}]", shown), "a type of Python instead of a word"


@pytest.mark.parametrize("name", tables())
def test_results(name: str) -> None:
    shown = printed(tables()[name]())

    check(name, shown)
    assert not re.search(r"\[/?[a-z ]*\]", re.sub(r"\[(yes|no)\]", "", shown)), "literal markup"
    drawn = [line for line in shown.splitlines() if line[:1] in "┏┃┡│└├"]
    assert all(len(line) <= WIDTH for line in drawn)
    heads = [line for line in drawn if line.startswith("┃")]
    assert all(cell.strip() for cell in heads[0].strip("┃").split("┃")) if heads else True


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    from hgkd_edge import doctor

    missing = {"tensorrt", "tensorrt_rtx", "av"}
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in missing else "1.2.3")
    monkeypatch.setattr(doctor, "_gpu", lambda: doctor.Capability("NVIDIA GPU", True, "driver"))
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.12.1")
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)

    check("doctor", run("doctor"))


def test_doctor_names_every_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from hgkd_edge import doctor

    project = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    extras = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None)

    hints = " ".join(capability.hint for capability in doctor.examine())

    for extra in {*re.findall(r"^([a-z-]+) = \[", extras, re.MULTILINE)} - {"dev"}:
        assert f'"hgkd-edge[{extra}]"' in hints


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    from hgkd_edge.bench import local
    from hgkd_edge.bench.records import Refusal

    listed = [("ort-cpu", None), ("tensorrt", Refusal(name="tensorrt", reason="no NVIDIA GPU"))]
    monkeypatch.setattr(local, "list_runners", lambda: listed)

    check("devices", run("devices"))


@pytest.mark.parametrize("arguments", [["recipes", "list"], ["doctor", "--kernels"]], ids=" ".join)
def test_lists(arguments: list[str]) -> None:
    check("-".join(arguments).replace("--", ""), run(*arguments))


def test_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)

    check("data", run("data", "samples/bccd"))


def test_report(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("shop", "shop-2"):
        RunDir.create(Recipe.model_validate(tiny_recipe), Path("runs", name))

    check("report", run("report", "runs/shop") + run("report", "runs/shop", "runs/shop-2"))


def test_pretrain(tiny_recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hgkd_edge.distillation import pretrain

    weights = Path("cache/teachers/0f3a/model.safetensors")
    monkeypatch.setattr(pretrain, "pretrain_teacher", lambda *_, **__: weights)

    monkeypatch.chdir(tiny_recipe_file.parent)

    check("pretrain", run("pretrain", tiny_recipe_file.name))


def test_demo_says_at_once_what_is_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    from hgkd_edge import demo

    stream = io.StringIO()
    monkeypatch.setattr(demo, "console", make_console(file=stream, width=WIDTH))

    demo._print_plan()

    check("demo-plan", stream.getvalue())


def test_recipes_show() -> None:
    check("recipes-show", run("recipes", "show", "demo"))


def test_recipes_validate() -> None:
    check("recipes-validate", without_root(run("recipes", "validate", "demo")))


@pytest.fixture
def shop(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with `photos`."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos / "train", "photos")


@pytest.mark.usefixtures("shop")
def test_recipes_new() -> None:
    check("recipes-new", run("recipes", "new", "--images", "photos", "--labels", "few"))
    check("recipes-new-file", Path("recipe.yaml").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("shop")
def test_recipes_new_asks_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("hgkd_edge.cli.recipes.sys", terminal)

    check("recipes-new-questions", run("recipes", "new", typed="photos\n\nfew\n\n\n\n"))


def test_bench_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(build_convnet(), "shop.fp32.onnx")

    check("bench-estimate", run("bench", "shop.fp32.onnx", "--estimate", "--on", "nano,orin-nano"))


ONE_OFF = """
bench-estimate data demo-plan devices doctor doctor-kernels pretrain recipes-list recipes-new
recipes-new-file recipes-new-questions recipes-show recipes-validate report
"""


def test_no_screen_is_left_that_nothing_shows() -> None:
    helps = {f"help-{command or 'hgkd-edge'}".replace(" ", "-") for command in commands()}
    errors = {f"error-{name}" for name in MISTAKES}

    shown = helps | errors | set(tables()) | set(ONE_OFF.split())
    assert {file.stem for file in SCREENS.iterdir()} == shown


@pytest.mark.parametrize("name", tables())
def test_colors_change_no_character(name: str) -> None:
    make = tables()[name]

    colored = printed(make(), force_terminal=True, color_system="truecolor", no_color=False)

    assert Text.from_ansi(colored).plain.rstrip() == printed(make()).rstrip()


MISTAKES = {
    "unknown-recipe": ("distill", "no-such-recipe"),
    "unknown-key": ("distill", "demo", "--set", "train.epoch=3"),
    "wrong-value": ("recipes", "validate", "demo", "--set", "mask.ratio=2"),
    "unknown-run": ("export", "runs/no-such-run"),
    "unknown-option": ("bench", "--presision", "fp16"),
    "pretrained-already": ("pretrain", "demo"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_error_and_a_hint(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hgkd-edge", *MISTAKES[name]])

    with pytest.raises(SystemExit) as ended:
        main()

    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    check(f"error-{name}", without_root(printed.err))
    assert printed.err.startswith("error: ")
