from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hgkd_edge.errors import RecipeError
from hgkd_edge.recipe import Recipe, builtin_recipes, find_recipe, load_recipe
from hgkd_edge.yaml_settings import differing_keys, parse_settings


def write(tmp_path: Path, recipe: dict[str, Any]) -> Path:
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def test_a_recipe_survives_the_round_trip_through_its_own_yaml(
    tiny_recipe_file: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(tiny_recipe_file)
    again = tmp_path / "again.yaml"
    again.write_text(recipe.to_yaml())

    assert load_recipe(again) == recipe


def test_set_overrides_replace_values_and_later_ones_win(tiny_recipe_file: Path) -> None:
    recipe = load_recipe(
        tiny_recipe_file,
        ["train.epochs=7", "train.epochs=9", "mask.ratio=0.75", "data.image_size=[64, 96]"],
    )

    assert recipe.train.epochs == 9
    assert recipe.mask.ratio == 0.75
    assert recipe.data.size == (64, 96)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.epoch=3", ["train.epoch", "did you mean 'train.epochs'"]),
        ("studnet.name=x", ["studnet", "did you mean 'student'"]),
        ("train.lr=fast", ["train.lr=fast", "number"]),
        ("train.epochs=0", ["train.epochs", "0", "greater than 0"]),
        ("loss.target=smoth_l1", ["loss.target", "did you mean 'smooth_l1'"]),
        ("data.source=folders", ["data.source", "did you mean 'folder'"]),
        ("mask.ratio=1.0", ["mask.ratio", "1.0", "less than 1"]),
        ("teacher.weights=path", ["teacher.path"]),
        ("teacher.view=visible", ["loss.where"]),
        ("teacher={name: a, view: visible, layers: [0]}", ["teacher", "set layers to 'last'"]),
        ("name=a/b", ["name=a/b", "must be letters"]),
        ("train=3", ["train", "3"]),
        ("train.lr=.inf", ["train.lr", "inf", "finite"]),
        ("loss.pixel_weight=.nan", ["loss.pixel_weight", "nan", "finite"]),
        ("train.accumulate=3", ["batch_size 16", "accumulate = 3", "use a batch_size of 15"]),
        ("train.warmup_epochs=3", ["warmup_epochs 3", "epochs 2", "set warmup_epochs lower"]),
        ("teacher.pretrain.decoder_width=48", ["teacher.pretrain.decoder_width", "of 32"]),
        ("teacher.pretrain.objective=mea", ["objective", "'mae' or 'ibot'"]),
        ("teacher.pretrain={objective: ibot, batch_size: 1}", ["batch_size of at least 2"]),
        (
            "teacher.pretrain={objective: ibot, mask_ratio: 0.6}",
            ["mask_ratio has no effect with objective 'ibot'"],
        ),
        (
            "teacher.pretrain={ibot: {prototypes: 64}}",
            ["ibot has no effect with objective 'mae'"],
        ),
        (
            "teacher.pretrain={objective: ibot, ibot: {mask_ratio: [0.5, 0.1]}}",
            ["ibot.mask_ratio", "0 < low <= high <= 1"],
        ),
        ("mask.ratio={}", ["mask", "must start at 0, such as {0: 0.75, 0.8: 0}"]),
        ("mask.ratio={0.1: 0.5}", ["mask", "must start at 0, such as {0: 0.75, 0.8: 0}"]),
        ("mask.ratio={0: 0.5, 0.4: 0.6, 0.2: 0}", ["must be in order: 0.0, 0.4, 0.2"]),
        ("mask.ratio={0: 1}", ["mask.ratio.0 = 1", "less than 1"]),
        ("mask.ratio={0: 0.5, 1: 0}", ["mask.ratio.1 = 1", "less than 1"]),
        ("mask.ratio={0: half}", ["mask.ratio.0 = 'half'", "number"]),
        (
            "mask={ratio: {0: 0.75, 0.9: 0.5}, whole_share: 0.2}",
            ["the stage of ratio at 0.9 would never be reached", "whole images start at 0.8"],
        ),
    ],
)
def test_a_bad_value_is_named_with_place_key_value_and_fix(
    tiny_recipe_file: Path, override: str, parts: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(tiny_recipe_file, [override])

    message = str(caught.value)
    assert message.startswith((f"{tiny_recipe_file}: ", f"--set {override}: "))
    assert all(part in message for part in parts), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("mask", "ratios"),
    [
        ("mask.ratio=0.6", [0.6, 0.6, 0.6, 0.6]),
        ("mask.ratio={0: 0.75, 0.5: 0.5, 0.8: 0}", [0.75, 0.5, 0.5, 0.0]),
        ("mask.ratio={0: 0, 0.5: 0.5}", [0.0, 0.5, 0.5, 0.5]),
        ("mask={ratio: 0.6, whole_share: 0.2}", [0.6, 0.6, 0.6, 0.0]),
        ("mask={ratio: {0: 0.75, 0.5: 0.5}, whole_share: 0.2}", [0.75, 0.5, 0.5, 0.0]),
    ],
)
def test_every_stage_of_the_ratio_holds_from_its_start_on(
    tiny_recipe_file: Path, tmp_path: Path, mask: str, ratios: list[float]
) -> None:
    recipe = load_recipe(tiny_recipe_file, [mask])
    again = tmp_path / "again.yaml"
    again.write_text(recipe.to_yaml())

    found = [recipe.mask.ratio_at(progress) for progress in (0.0, 0.5, 0.799, 0.8)]

    assert found == ratios
    assert recipe.mask.highest_ratio == max(ratios)
    assert load_recipe(again) == recipe


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.image_size=0", "--set data.image_size=0: must be greater than 0"),
        (
            "data.image_size=[64, 0]",
            "--set data.image_size=[64, 0]: data.image_size.1 = 0: must be greater than 0",
        ),
        ("data.workers=-1", "--set data.workers=-1: must be greater than or equal to 0"),
        ("mask.patch=atuo", "--set mask.patch=atuo: must be 'auto' (did you mean 'auto'?)"),
        ("teacher.layers=lats", "--set teacher.layers=lats: must be 'last' (did you mean 'last'?)"),
    ],
)
def test_a_value_of_several_types_has_one_line_without_pydantics_names_for_them(
    tiny_recipe_file: Path, override: str, expected: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(tiny_recipe_file, [override])

    assert caught.value.message == expected


def test_a_warmup_that_nobody_chose_ends_within_the_training(tiny_recipe_file: Path) -> None:
    recipe = load_recipe(tiny_recipe_file, ["train={epochs: 2}"])

    assert recipe.train.warmup_epochs == 1


def test_a_teachers_path_may_begin_at_home(
    tiny_recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/somewhere")

    recipe = load_recipe(tiny_recipe_file, ["teacher={name: a, weights: path, path: ~/w.pth}"])

    assert recipe.teacher.path == Path("/somewhere/w.pth")


def test_all_problems_of_a_recipe_are_reported_together(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    tiny_recipe["train"] |= {"epochs": -1, "optimiser": "adamw"}
    del tiny_recipe["name"]

    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, tiny_recipe))

    message = str(caught.value)
    assert "train.epochs" in message
    assert "did you mean 'train.optimizer'" in message
    assert "'name' is required" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [", "not valid YAML at line"),
        ("just words", "mapping"),
        ("a: {b: 1}\nc: {d: 1,\n  d: 2}", "not valid YAML at line 3: 'd' is defined twice"),
        ("train:\n  1: a\n  0x1: b", "not valid YAML at line 3: '0x1' is defined twice"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)

    with pytest.raises(RecipeError, match=expected):
        load_recipe(file)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("train.epochs", "must be KEY=VALUE"),
        ("=3", "must be KEY=VALUE"),
        ("name.x=1", "'name' is a value, not a section"),
        ("train.lr=[1", "not valid YAML"),
    ],
)
def test_a_malformed_override_is_named(tiny_recipe_file: Path, override: str, reason: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(tiny_recipe_file, [override])

    assert caught.value.message.startswith(f"--set {override}: ")
    assert reason in caught.value.message


def test_a_value_in_the_place_of_a_section_is_shown_with_the_keys_of_the_section(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    tiny_recipe["mask"] = 3

    with pytest.raises(RecipeError) as of_one:
        load_recipe(write(tmp_path, tiny_recipe))
    with pytest.raises(RecipeError) as of_all:
        parse_settings(Recipe, [3], name="it")  # type: ignore[arg-type]

    assert "mask = 3: must be a section with the keys ratio, " in of_one.value.message
    assert "must be a section with the keys name, " in of_all.value.message


def test_settings_that_differ_are_named_by_their_dotted_keys() -> None:
    one = {"name": "a", "train": {"lr": 1, "epochs": 2}, "seed": 3}
    other = {"name": "a", "train": {"lr": 1, "epochs": 4}, "mask": {"ratio": 0.5}}

    assert set(differing_keys(one, other)) == {"train.epochs", "seed", "mask"}
    assert not set(differing_keys(one, one))


def test_problems_beyond_the_first_twenty_are_counted(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    tiny_recipe["train"] |= {f"unknown{number}": 1 for number in range(23)}

    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, tiny_recipe))

    assert caught.value.message.count("unknown key") == 20
    assert caught.value.message.endswith("and 3 more problems")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{0: .5, 0: .2}", "--set mask.ratio=.*: '0' is defined twice"),
        ("{0: .5, 0.0: .2}", "'0.0' is defined twice"),
        ("{'0': .5, '0.0': .2}", "two stages of ratio start at the same share"),
    ],
)
def test_a_key_that_is_defined_twice_is_refused_in_an_override_too(
    tiny_recipe_file: Path, value: str, expected: str
) -> None:
    with pytest.raises(RecipeError, match=expected):
        load_recipe(tiny_recipe_file, [f"mask.ratio={value}"])


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
def test_every_builtin_recipe_is_valid_and_says_what_it_costs(name: str) -> None:
    path = find_recipe(name)

    load_recipe(path)

    assert path.read_text().startswith("# ")


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean the built-in recipe 'demo'"):
        find_recipe("dmo")
    with pytest.raises(
        RecipeError, match="no recipe file or built-in.*hint: built in: cifar_small"
    ):
        find_recipe("another")


def test_a_recipe_file_that_is_not_there_is_not_taken_for_a_built_in_one() -> None:
    with pytest.raises(RecipeError, match="no recipe file 'nothere.yaml'.*--out nothere.yaml"):
        find_recipe("nothere.yaml")


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("train.epoch=3", "--set train.epochs=3"),
        ("lr=0.1", "--set train.lr=0.1"),
        ("studnet.name=x", "--set student.name=x"),
        ("loss.target=smoth_l1", "--set loss.target=smooth_l1"),
        ("train.xyzzy=1", ""),
        ("train={epoch: 3}", ""),
        ("loss={target: smoth_l1}", ""),
    ],
)
def test_a_wrong_override_is_named_and_fixed_by_the_hint(
    override: str, fix: str, tiny_recipe_file: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(tiny_recipe_file, ["seed=3", override])

    assert caught.value.message.startswith(f"--set {override}: ")
    assert caught.value.hint == fix


def test_a_problem_in_the_file_is_not_taken_for_one_of_an_override(tiny_recipe_file: Path) -> None:
    tiny_recipe_file.write_text(tiny_recipe_file.read_text() + "sede: 1\n")

    with pytest.raises(RecipeError) as caught:
        load_recipe(tiny_recipe_file, ["train.epochs=3"])

    assert caught.value.message == (
        f"{tiny_recipe_file}: unknown key 'sede' (did you mean 'seed'?)"
    )
