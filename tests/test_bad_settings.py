"""Wrong settings, records and options: valid, or one line and exit status 2, never a traceback."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command

from hgkd_edge.answering import require_threshold
from hgkd_edge.bench.compare import compare_files
from hgkd_edge.bench.devices import find_devices
from hgkd_edge.bench.edge.hosts import load_fleet
from hgkd_edge.bench.models import resolve_models
from hgkd_edge.bench.options import BenchOptions
from hgkd_edge.bench.records import load_bench
from hgkd_edge.cli import app, main
from hgkd_edge.comparison.compare_runs import compare_runs
from hgkd_edge.errors import RunError
from hgkd_edge.export_options import ExportOptions
from hgkd_edge.export_record import ExportRecord, write_exports
from hgkd_edge.manifest_record import ManifestRecord
from hgkd_edge.recipe import builtin_recipes, load_recipe
from hgkd_edge.report import report
from hgkd_edge.rundir import RunDir
from hgkd_edge.task_model import TaskModel
from hgkd_edge.tasks.config import FinetuneConfig, recorded_settings
from hgkd_edge.video.predict import Options
from hgkd_edge.yaml_settings import parse_settings
from tests.damage import TEXT, VALUES, damaged, within
from tests.fuzzing import ANYTHING, changed, fuzz, refused_or_read
from tests.test_comparison import fine_tuned, keep, measure

RECIPES = {name: load_recipe(file) for name, file in builtin_recipes().items()}
WHOLE = RECIPES["demo"].model_dump(mode="json")
FINETUNE = FinetuneConfig(
    task="segment", backbone=Path("backbone.safetensors"), data=RECIPES["demo"].data
).model_dump(mode="json")
FLEET = {"hosts": [{"host": "me@orin", "name": "a"}, {"host": "me@nano:22"}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings")


def in_file(folder: Path, content: Any, name: str = "file.yaml") -> Path:
    """Any value as YAML, or as bytes."""
    file = folder / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(yaml.safe_dump(content), encoding="utf-8", errors="surrogatepass")
    return file


def valid_or_refused(read: Callable[[], object]) -> None:
    """Settings that are wrong end a command with status 2."""
    error = refused_or_read(read)
    assert error is None or error.exit_code == 2, error.message


@given(content=changed(WHOLE))
@fuzz(20)
def test_a_recipe_with_one_wrong_part_is_valid_or_refused(folder: Path, content: Any) -> None:
    file = in_file(folder, content)

    valid_or_refused(lambda: load_recipe(file))


@pytest.mark.parametrize("recipe", builtin_recipes())
def test_a_damaged_recipe_file_is_valid_or_refused(folder: Path, recipe: str) -> None:
    whole = builtin_recipes()[recipe].read_bytes()

    for seed in range(8):
        file = in_file(folder, damaged(whole, TEXT, seed))
        valid_or_refused(lambda file=file: load_recipe(file))  # type: ignore[misc]


KEYS = [
    f"{section}.{key}" for section, keys in WHOLE.items() if isinstance(keys, dict) for key in keys
]


@given(
    key=st.sampled_from(KEYS) | st.text(max_size=20),
    value=st.sampled_from(VALUES) | st.text(max_size=30) | ANYTHING.map(repr),
)
@fuzz(30)
def test_any_override_is_valid_or_refused(key: str, value: str) -> None:
    demo = builtin_recipes()["demo"]

    valid_or_refused(lambda: load_recipe(demo, [f"{key}={value}"]))


@given(content=changed(FINETUNE), override=st.text(max_size=20))
@fuzz(20)
def test_finetuning_settings_are_valid_or_refused(content: Any, override: str) -> None:
    raw = content if isinstance(content, dict) else {"task": content}

    valid_or_refused(lambda: parse_settings(FinetuneConfig, raw, [override], name="finetune"))


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("qat=[]", "must be a section with the keys model, calibration"),
        ("qat={model: a, calibration: 0}", "qat.calibration = 0: must be greater than 0"),
        ("qat={model: a, calibrate: 9}", "'qat.calibrate' (did you mean 'qat.calibration'?)"),
    ],
)
def test_a_problem_in_a_section_that_may_be_missing_is_named(override: str, problem: str) -> None:
    error = refused_or_read(
        lambda: parse_settings(FinetuneConfig, copy.deepcopy(FINETUNE), [override], name="finetune")
    )

    assert error is not None
    assert problem in error.message


@given(content=changed(FLEET))
@fuzz(20)
def test_a_fleet_file_is_valid_or_refused(folder: Path, content: Any) -> None:
    file = in_file(folder, content)

    valid_or_refused(lambda: load_fleet(file))


@given(name=st.text() | st.sampled_from(VALUES))
@fuzz(15)
def test_a_device_is_known_or_refused(name: str) -> None:
    valid_or_refused(lambda: find_devices(name))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run with all records, as the commands write them."""
    data = {"source": "bundled", "image_size": 64}
    made = fine_tuned({**WHOLE, "data": data}, tmp_path_factory.mktemp("runs") / "tiny")
    made.finetune_file.write_text(yaml.safe_dump(FINETUNE))
    result = {"task": "classify", "photos": 16, "split": "test", "scores": {"top1": 0.5}}
    made.finetune_result_file.write_text(json.dumps(result))
    train = {"photos": 48, "fingerprint": "f" * 64, "skipped": [["broken.jpg", "is truncated"]]}
    entries = {
        "seed": 0,
        "teacher": {"name": "vit", "license": "mit"},
        "data": {"train": train},
        "result": {"run": "runs/tiny", "held_out": None},
    }
    made.update_manifest(ManifestRecord.model_validate(entries))
    measure(made, fp32=2.0, fp16=1.0)
    keep(made, fp32=80.0, fp16=79.0)
    return made


RECORDS = (
    *("manifest.json", "export.json", "bench.json", "scores.json", "finetune.json"),
    *("finetune.yaml", "recipe.yaml"),
)
READERS: dict[str, Callable[[RunDir], object]] = {
    "report": report,
    "compare": lambda run: compare_runs([run], score=False),
    "bench": lambda run: resolve_models([run.path]),
    "bench --compare": lambda run: compare_files(run.path / "bench.json", run.path / "bench.json"),
    "bench.json": lambda run: load_bench(run.path / "bench.json"),
    "resume": lambda run: (
        recorded_settings(run),
        run.is_distilled,
        run.recorded_sha256(run.model_file),
    ),
    "export": lambda run: write_exports(run, ExportRecord(files=[])),
    "record": lambda run: run.enter(run.model_file, [run.recipe_file]),
}


def test_the_records_are_read_by_every_reader(run: RunDir) -> None:
    for read in READERS.values():
        read(run)


@pytest.mark.parametrize("record", RECORDS)
@given(data=st.data())
@fuzz(5)
def test_a_changed_record_of_a_run_is_read_or_refused(
    run: RunDir, record: str, data: st.DataObject
) -> None:
    file = run.path / record
    kept = {each: each.read_bytes() for each in run.path.iterdir() if each.is_file()}
    is_json = file.suffix == ".json"
    whole = json.loads(kept[file]) if is_json else yaml.safe_load(kept[file])
    content = data.draw(changed(whole))
    file.write_text(json.dumps(content) if is_json else yaml.safe_dump(content))
    changed_to = file.read_bytes()

    try:
        for name, read in READERS.items():
            file.write_bytes(changed_to)
            error = refused_or_read(lambda read=read: read(run))  # type: ignore[misc]
            assert error is None or error.exit_code == 2, name
    finally:
        for each, content in kept.items():
            each.write_bytes(content)


def commands(group: Any, *names: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that name it."""
    if hasattr(group, "commands"):
        for name, command in group.commands.items():
            yield from commands(command, *names, name)
    else:
        yield names, group


COMMANDS = {" ".join(names): command for names, command in commands(get_command(app))}


NUMBERS = ("", "nan", "-1", "1e400", "9" * 400)
TEXTS = ("", "\x1b[2J", "\u202e", "a\nb", "../" * 50 + "proc/x", "x" * 5000, "/dev/zero", "0")
# Typer's words for "x" where a number belongs, which differ by its version.
NO_NUMBER = re.compile(r"valid (number|integer|float)")


WITHOUT_A_FILE = ("devices", "doctor", "recipes list", "recipes new", "recipes schema")
NEEDED = {"recipes new": ["--images", "photos", "--count", "10"]}


def stop(*_: object) -> None:
    raise RunError("stopped here", hint="no step of the demo runs")


class Refused:
    """Runs a command that has no file to work on, and checks how it refuses."""

    def __init__(self, name: str, patch: pytest.MonkeyPatch, capsys: Any) -> None:
        self.name, self._patch, self._capsys = name, patch, capsys
        self.works = name in WITHOUT_A_FILE

    def __call__(self, *arguments: str) -> str:
        """What it prints."""
        self._patch.setattr(sys, "argv", ["hgkd-edge", *self.name.split(), *arguments])
        code, printed = within(1, self._exit)
        assert code == 2 or (code == 0 and self.works), (arguments, printed)
        assert "Traceback" not in printed, arguments
        assert "bug" not in printed, (arguments, printed)
        lines = [line for line in printed.splitlines() if line.lower().startswith("error: ")]
        assert len(lines) == (0 if code == 0 else 1), (arguments, printed)
        assert max(map(len, printed.splitlines()), default=0) <= 4000, arguments
        return printed

    def _exit(self) -> tuple[Any, str]:
        """Its exit status, and what it prints as errors."""
        Path("recipe.yaml").unlink(missing_ok=True)  # of the call before
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, self._capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_of_every_command_takes_or_refuses_any_value(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hgkd_edge.demo._all_steps", stop)
    refused, parameters = Refused(name, monkeypatch, capsys), COMMANDS[name].params
    arguments = [p for p in parameters if p.param_type_name == "argument"]
    needed = NEEDED.get(name) or ["no/such/file.onnx" for p in arguments if p.required]

    refused(*needed)
    refused(*needed, "--no-such-option")
    for value in TEXTS if arguments else ():
        refused(*[value] * max(1, len(needed)))
    for option in parameters:
        if option in arguments:
            continue
        if option.is_flag:
            refused(*needed, option.opts[0])
            continue
        number = NO_NUMBER.search(refused(*needed, option.opts[0], *["x"] * option.nargs))
        for value in NUMBERS if number else TEXTS:
            printed = refused(*needed, option.opts[0], *[value] * option.nargs)
            assert value or "it is empty" in printed, option.opts


def test_numbers_are_recognized_in_this_version_of_typer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = Refused("bench", monkeypatch, capsys)

    assert NO_NUMBER.search(refused("no.onnx", "--duration", "x"))
    assert NO_NUMBER.search(refused("no.onnx", "--rounds", "x"))


NAN = float("nan")
SEGMENTS = TaskModel(session=None, task="segment", classes=(), input=None)  # type: ignore[arg-type]
# Typer 0.27 lets NaN pass every bound, and Python's callers have no Typer.
NO_NUMBERS: dict[str, Callable[[], object]] = {
    "--duration nan": lambda: BenchOptions(duration_s=NAN),
    "--duration inf": lambda: BenchOptions(duration_s=float("inf")),
    "--max-drop nan": lambda: compare_runs([], max_drop=NAN),
    "--max-drop nan of export": lambda: ExportOptions(precision="int8", max_drop=NAN),
    "--reconnect nan": lambda: Options(patience=NAN),
    "--threshold nan": lambda: require_threshold(SEGMENTS, NAN),
    "--threshold 2": lambda: require_threshold(SEGMENTS, 2),
}


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_a_number_that_nothing_can_be_compared_with_is_refused(name: str) -> None:
    error = refused_or_read(NO_NUMBERS[name])

    assert error is not None
    option, value, *_ = name.split()
    assert error.message.startswith(f"{option} must be ")
    assert error.message.endswith(f"not {value}")
    assert error.hint
