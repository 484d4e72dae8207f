from __future__ import annotations

from pathlib import Path

import pytest

from hgkd_edge.errors import RecipeError
from hgkd_edge.parsing import read_text
from hgkd_edge.recipe import builtin_recipes, load_recipe, recipe_summary


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_read_in_what_its_byte_order_mark_says(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("größe, 大\n".encode(encoding))

    assert read_text(file) == "größe, 大\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"one\ntw\xf6\n", "line 2 is not text in UTF-8"), (b"a\0b\0", "holds zero bytes")],
)
def test_what_is_no_text_is_refused_by_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)

    with pytest.raises(ValueError, match=said):
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
