"""The model card: whatever the data calls its classes, it is text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hgkd_edge.models.backbone import BackboneSpec
from hgkd_edge.recipe_sections import DataConfig
from hgkd_edge.score_records import FinetuneRecord
from hgkd_edge.tasks.base import ModelCard
from hgkd_edge.tasks.card import model_card
from hgkd_edge.tasks.config import FinetuneConfig

HOSTILE = [
    "![x](http://a.example/x.png)",
    "[verified](javascript:alert(1))",
    "<img src=http://a.example onerror=alert(1)>",
    "cat\n\n# Verified\n",
    "cat | 1.0000 |\n| dog",
    "`` ` `` <!-- ",
    "http://a.example",
    "\u202edeifirev\u2066",
    "&lt;b&gt;",
]


def written(name: str) -> str:
    spec = BackboneSpec("resnet18", 4, (64, 64), (0.5,) * 3, (0.5,) * 3)
    config = FinetuneConfig(
        backbone=Path("b"), task="classify", data=DataConfig(path=Path("p"), image_size=64)
    )
    scores = {"top1": 0.5, "per_class": {name: 0.5}}
    result = FinetuneRecord(photos=1, split="test", scores=scores)
    return model_card(ModelCard("classify", (name, "dog"), spec), config, result, photos=1)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_class_name_becomes_no_part_of_the_page(name: str) -> None:
    card, plain = written(name), written("cat")

    assert card.count("\n") == plain.count("\n")
    shown = re.sub(r"\\.", "", card)  # a character after a backslash is text
    expected = re.sub(r"\\.", "", plain)
    for sign in "[]<>!`|#&":
        assert shown.count(sign) == expected.count(sign)
    assert "http:" not in shown
    assert not {"\u202e", "\u2066"} & set(card)


def test_usual_names_stay_as_they_are() -> None:
    assert "cat-2 größe, dog" in written("cat-2 größe")
