from __future__ import annotations

import contextlib
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import hgkd_edge
from hgkd_edge.errors import RecipeError
from hgkd_edge.parsing import brief, parse_json, parse_yaml, read_text
from hgkd_edge.recipe import builtin_recipes, load_recipe, recipe_summary


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """At most 500 MB more than now."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 500_000_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_read_in_what_its_byte_order_mark_says(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("größe, 大\n".encode(encoding))

    assert read_text(file) == "größe, 大\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"one\ntw\xf6\n", "line 2 is not text in UTF-8"), (b"a\0b\0", "holds zero bytes")],
)
def test_what_is_no_text_is_refused_by_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)

    with pytest.raises(ValueError, match=message):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_recipe_saved_by_an_editor_of_windows_is_read(tmp_path: Path, encoding: str) -> None:
    demo = builtin_recipes()["demo"]
    saved = tmp_path / "demo.yaml"
    saved.write_bytes(demo.read_text(encoding="utf-8").encode(encoding))

    assert load_recipe(saved) == load_recipe(demo)
    assert recipe_summary(saved) == recipe_summary(demo)


def test_a_recipe_in_another_encoding_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes("name: a\n# größe\n".encode("latin-1"))

    with pytest.raises(RecipeError, match="line 2 is not text in UTF-8.*save it as UTF-8"):
        load_recipe(tmp_path / "r.yaml")


BOMB = "\n".join(
    ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10))]
)
ATTACKS = {
    "aliases of aliases": (BOMB, "expands to .* values"),
    "merged aliases": (
        "\n".join(
            ["b0: &b0 {k: x}"]
            + [f"b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}'] * 10)}]}}" for i in range(1, 10)]
        ),
        "expands to .* values",
    ),
    "an alias of itself": ("a: &a [*a]", "nested more than"),
    "a chain of aliases": (
        "\n".join(["c0: &c0 [x]", *(f"c{i}: &c{i} [*c{i - 1}]" for i in range(1, 900))]),
        "nested more than",
    ),
    "deep lists": ("a: " + "[" * 20_000, "nested more than"),
    "deep mappings": ("a: " + "{a: " * 200 + "}" * 200, "nested more than"),
    "a number of 5,000 digits": ("seed: " + "9" * 5000, "holds a number of too many digits"),
    "a hexadecimal number": ("seed: 0x" + "F" * 5000, "holds a number of too many digits"),
    "a number of base 60": ("seed: 1" + ":0" * 200_000, "holds a number of too many digits"),
    "a fraction of base 60": ("seed: 1" + ":0" * 200_000 + ".5", "number of too many digits"),
    "a number by its tag": (f"seed: !!int '{'1_' * 5000}'", "holds a number of too many digits"),
    "a type of Python": ("seed: !!python/object/apply:os.system [id]", "could not determine"),
    "a list as a key": ("? [a, b]\n: 1", "found unhashable key"),
    "something else merged": ("<<: 7", "expected a mapping"),
    "a truth that is none": ("seed: !!bool maybe", "holds a value that cannot be read"),
    "a time that is none": ("seed: !!timestamp soon", "holds a value that cannot be read"),
    "a number without digits": ("seed: !!int ''", "holds a value that cannot be read"),
    "no number": ("train: {lr: .nan, ema: .inf}", "train.lr = nan: .*finite"),
    "a date that is none": ("name: 2020-13-45", "holds a value that cannot be read"),
    "a huge value": ("seed: '" + "x" * 500_000 + "'", r"seed = 'x+\.\.\.x+"),
    "very many keys": ("\n".join(f"k{i}: 1" for i in range(20_000)), "more problems"),
    "a huge key": ("k" * 100_000 + ": 1", "unknown key|not valid YAML"),
    "a huge file": ("#" * (2**20 + 1), "has 1,048,577 bytes"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_recipe_that_was_made_to_harm_is_refused_in_one_short_line(
    tmp_path: Path, attack: str
) -> None:
    text, message = ATTACKS[attack]
    file = tmp_path / "r.yaml"
    file.write_text(text)

    with limited_memory(), pytest.raises(RecipeError, match=message) as refused:
        load_recipe(file)

    assert len(str(refused.value)) < 5000
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", ["[" * 20_000, "2020-13-45", "9" * 5000, BOMB.split("\n")[1]])
def test_an_override_that_was_made_to_harm_is_refused(value: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(builtin_recipes()["demo"], [f"name={value}"])

    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested more than 40 levels deep"),
        ('{"a": ' * 100_000, "nested more than 40 levels deep"),
        ('{"a": [' * 200 + "]}" * 200, "nested more than 40 levels deep"),
        ("9" * 5000, "too many digits"),
        ("{", "Expecting"),
    ],
    ids=["lists", "objects", "less deep", "digits", "no JSON"],
)
def test_json_that_was_made_to_harm_is_a_value_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


@pytest.mark.parametrize(
    "text",
    ["a: 1\na: 2", "{a: {b: 1, b: 1}}", "{0: a, 0.0: b}", "{yes: a, true: b}", "{'1': a, 1: b}"],
)
def test_no_value_of_a_key_that_is_defined_twice_is_taken_in_silence(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match="is defined twice"):
        parse_yaml(text)


def test_a_key_may_override_what_is_merged_into_its_mapping() -> None:
    text = "base: &base {a: 1, b: 2}\nown: {<<: *base, b: 3}"

    assert parse_yaml(text)["own"] == {"a": 1, "b": 3}


# Calls on the package's own data, or on text already checked by `parse_json`.
OWN = {"bench/devices.py": "yaml.safe_load(text)", "data/annotations/coco.py": "json.JSONDecoder()"}


def test_every_reader_of_json_and_yaml_in_the_package_is_bounded() -> None:
    package = Path(hgkd_edge.__file__).parent
    found = {
        file.relative_to(package).as_posix(): line.strip()
        for file in package.rglob("*.py")
        # These run on a device, on what this machine sends.
        if file.parent.name != "device" and file.name != "ort_device.py"
        for line in file.read_text().splitlines()
        if re.search(r"json\.loads?\(|JSONDecoder\(|yaml\.\w*load\w*\(", line)
    }

    assert found.pop("parsing.py") == "value = json.loads(text)"
    assert found.keys() == OWN.keys()
    assert all(OWN[name] in line for name, line in found.items())


def test_json_larger_than_its_reader_takes_is_not_parsed() -> None:
    with pytest.raises(ValueError, match="has 12 characters; 10 are read"):
        parse_json('"0123456789"', 10)


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")

    for name, kind in (("pipe", "named pipe"), ("zero", "device"), (".", "folder")):
        with pytest.raises(ValueError, match=f"is a {kind}"):
            read_text(tmp_path / name)


def test_a_foreign_value_is_shown_briefly() -> None:
    value: list[object] = ["x"]
    for _ in range(60):
        value = [value] * 10

    assert len(brief(value)) <= 80
    assert brief("a" * 10**6).startswith("'aaa")
    assert brief([1, "a"]) == "[1, 'a']"
