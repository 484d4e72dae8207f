from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from hgkd_edge.cli import app
from hgkd_edge.cli.recipes import show_recipe
from hgkd_edge.errors import Interrupted, RecipeError
from hgkd_edge.recipe import builtin_recipes
from tests.started import COMMAND, Started


def hgkd(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hgkd_edge", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def hgkd_without_torch(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    blocked = "import sys; sys.modules['torch'] = None; from hgkd_edge.cli import main; main()"
    command = [sys.executable, "-c", blocked, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def every_command() -> list[list[str]]:
    root = get_command(app)
    found = []
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found += [[name, sub] for sub in inner] if inner else [[name]]
    return found


@pytest.mark.parametrize("command", every_command(), ids=" ".join)
def test_every_command_has_a_help_text_with_an_example(command: list[str]) -> None:
    node = get_command(app)
    for name in command:
        node = node.commands[name]  # type: ignore[attr-defined]

    assert node.help
    assert f"Example: hgkd-edge {' '.join(command)}" in " ".join(node.help.split())


def test_help_never_loads_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "hgkd_edge", "--help"],
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "timm", "onnxruntime", "numpy", "rich.table"}


def test_the_command_line_is_a_module_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hgkd_edge", "--version"], capture_output=True, text=True
    )

    assert done.stdout.startswith("hgkd-edge ")


def test_a_bad_setting_is_one_line_a_hint_and_exit_2(
    tiny_recipe_file: Path, tmp_path: Path
) -> None:
    done = hgkd("distill", str(tiny_recipe_file), "--set", "train.epoch=1", cwd=tmp_path)

    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert lines == [
        "error: --set train.epoch=1: unknown key 'train.epoch' (did you mean 'train.epochs'?)",
        "hint: --set train.epochs=1",
    ]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "locale",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "utf-8"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["latin-1", "utf-8", "C"],
)
@pytest.mark.parametrize("name", [b"caf\xe9.yaml", "\u5927.yaml".encode()], ids=["bytes", "wide"])
def test_a_name_that_the_terminal_cannot_show_ends_nothing(
    tmp_path: Path, locale: dict[str, str], name: bytes
) -> None:
    command = [sys.executable, "-m", "hgkd_edge", "recipes", "validate", name]

    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env={**os.environ, **locale})

    assert done.returncode == 2
    assert done.stderr.startswith(b"error: no recipe file")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["report", "--jsn"], "error: no such option: --jsn"),
        (["predict"], "error: missing argument 'MODEL'"),
        (["nonsense"], "error: no such command 'nonsense'"),
        (["data", "nowhere"], "error: 'nowhere': no such file or folder"),
        (["data", "x", "--draw", "-1"], "error: invalid value for '--draw'"),
    ],
)
def test_a_command_line_that_cannot_be_parsed_is_an_error_with_a_hint(
    arguments: list[str], expected: str
) -> None:
    done = hgkd(*arguments)

    assert done.returncode == 2
    error, hint = done.stderr.splitlines()
    assert error.startswith(expected)
    assert hint.startswith("hint: ")
    assert hint.endswith(" --help")


def test_a_shell_completes_the_names_of_commands() -> None:
    started = "import sys; sys.argv = ['hgkd-edge']; from hgkd_edge.cli import main; main()"
    asked = {
        "_HGKD_EDGE_COMPLETE": "complete_bash",
        "COMP_WORDS": "hgkd-edge ex",
        "COMP_CWORD": "1",
    }

    done = subprocess.run(
        [sys.executable, "-c", started], capture_output=True, text=True, env={**os.environ, **asked}
    )

    assert done.stdout.split() == ["export"]


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = hgkd("recipes", "validate", "nothing", "--debug", cwd=tmp_path)

    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "error: no recipe file" in done.stderr


@pytest.mark.parametrize("command", ["evaluate", "export", "finetune", "report"])
def test_a_command_without_a_run_says_how_to_make_one(tmp_path: Path, command: str) -> None:
    done = hgkd_without_torch(command, cwd=tmp_path)

    assert done.returncode == 2
    assert "hint: make one: hgkd-edge distill" in done.stderr


@pytest.mark.parametrize("command", ["distill", "pretrain", "recipes validate"])
def test_a_mistyped_recipe_is_reported_before_torch_is_loaded(tmp_path: Path, command: str) -> None:
    done = hgkd_without_torch(*command.split(), "recipy.yaml", cwd=tmp_path)

    assert done.returncode == 2
    assert "error: no recipe file" in done.stderr


def test_a_jetson_that_is_not_there_is_refused_clearly(tmp_path: Path) -> None:
    done = hgkd("bench", "--device", "jetson", cwd=tmp_path)

    assert done.returncode == 2
    assert "not a Jetson" in done.stderr
    assert "--host" in done.stderr


def test_recipes_are_listed_shown_and_validated(tmp_path: Path) -> None:
    listed = hgkd("recipes", "list", "--json")
    shown = hgkd("recipes", "show", "demo")
    mine = tmp_path / "mine.yaml"
    mine.write_text(shown.stdout)
    validated = Started("recipes", "validate", mine).end()

    assert "demo" in json.loads(listed.stdout)
    assert shown.stdout.startswith("# ")
    assert validated.returncode == 0, validated.stderr
    assert "valid" in validated.stdout


def test_the_version_is_printed() -> None:
    from hgkd_edge import __version__

    done = hgkd("--version")

    assert done.returncode == 0
    assert done.stdout == f"hgkd-edge {__version__}\n"


@pytest.mark.parametrize("command", ["recipes validate", "distill"])
def test_data_that_is_not_there_is_reported_before_torch_is_loaded(
    tiny_recipe_file: Path, tmp_path: Path, command: str
) -> None:
    missing = ("--set", "data.path=nowhere")

    done = hgkd_without_torch(*command.split(), str(tiny_recipe_file), *missing, cwd=tmp_path)

    assert done.returncode == 2
    assert done.stdout == ""
    assert "error: data.path = 'nowhere': no such file or folder" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("home", ["no home", "a home nobody can write"])
def test_a_cache_that_cannot_be_written_names_its_setting(
    tiny_recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    for name in ("HGKD_EDGE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    if home == "no home":
        call = "import pwd; pwd.getpwuid = lambda _: (_ for _ in ()).throw(KeyError()); "
        monkeypatch.delenv("HOME")
    else:
        call = ""
        monkeypatch.setenv("HOME", "/proc/nobody")  # nothing can be made there, even by root

    done = Started("distill", tiny_recipe_file, code=call + COMMAND, folder=tmp_path).end()

    assert done.returncode in (1, 2)
    assert "HGKD_EDGE_CACHE" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "runs").iterdir()) == []


def ended(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int | str | None:
    """How the command line ends when a command raises this."""
    import hgkd_edge.cli

    def fail(**options: object) -> None:
        raise error

    monkeypatch.setattr(hgkd_edge.cli, "app", fail)
    with pytest.raises(SystemExit) as raised:
        hgkd_edge.cli.main()
    return raised.value.code


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyboardInterrupt(), "stopped\n"),
        (
            Interrupted("stopped at step 3", hint="x --resume"),
            "stopped at step 3\nhint: x --resume\n",
        ),
    ],
)
def test_being_stopped_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    expected: str,
) -> None:
    assert ended(monkeypatch, error) == 130
    assert capsys.readouterr().err == expected


def test_the_doctor_names_what_is_missing_and_how_to_get_it() -> None:
    found = json.loads(hgkd("doctor", "--json").stdout)

    assert {entry["name"] for entry in found} >= {"this machine", "TensorRT engines", "OpenVINO"}
    assert all(entry["available"] or entry["hint"] for entry in found)


def test_the_doctors_table_holds_no_markup() -> None:
    shown = hgkd("doctor").stdout

    assert "yes" in shown
    assert not re.search(r"\[/?(green|yellow)?\]|\\\[", shown)


def test_a_missing_package_names_its_extra(tmp_path: Path) -> None:
    done = hgkd_without_torch("recipes", "validate", "demo", cwd=tmp_path)

    assert done.returncode == 2
    assert 'hint: pip install "hgkd-edge[train]"' in done.stderr


def test_only_a_teacher_that_is_to_be_pretrained_is(tmp_path: Path) -> None:
    done = hgkd("pretrain", "demo", cwd=tmp_path)

    assert done.returncode == 2
    assert "teacher.weights = 'bundled': there is nothing to pre-train" in done.stderr


SHOWN = {
    "escape sequences": ("name: a # \x1b]0;owned\x07\x1b[2J\x9b\n".encode(), "name: a # "),
    "other line ends": ("name: a # \u2028seed: 1\x0b\r\nb: 1\n".encode(), "name: a # "),
    "UTF-16": ("name: größe\r\nseed: 1\r\n".encode("utf-16"), "name: größe\nseed: 1\n"),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_a_strangers_recipe_is_shown_clean(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, begin = SHOWN[kind]
    file = tmp_path / "r.yaml"
    file.write_bytes(content)
    lines = content.decode("utf-16" if kind == "UTF-16" else "utf-8", "replace").count("\n")

    show_recipe(str(file))

    shown = capsys.readouterr().out
    assert shown.startswith(begin)
    assert shown.count("\n") == lines
    assert not {c for c in shown if not c.isprintable()} - {"\n"}


def test_a_recipe_that_comes_with_the_package_is_shown_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, file in builtin_recipes().items():
        show_recipe(name)

        assert capsys.readouterr().out == file.read_text(encoding="utf-8")


def test_what_is_no_text_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "huge").write_bytes(b"#" * (2**20 + 1))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")

    for name, expected in {
        "binary": "is not text",
        "huge": "has 1,048,577 bytes",
        "pipe": "no recipe file",
        "zero": "no recipe file",
        ".": "no recipe file",
    }.items():
        with pytest.raises(RecipeError, match=expected):
            show_recipe(str(tmp_path / name))
