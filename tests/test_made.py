"""What tests share is what they would have made."""

from __future__ import annotations

import zipfile
from itertools import product
from typing import Any

import numpy as np
import pytest
import timm
import torch

from exporters.onnx_export import _convert
from hgkd_edge.data.decode import Canvas, decode_into
from hgkd_edge.distillation.parts import build
from hgkd_edge.recipe import Recipe
from tests.conftest import BUNDLED
from tests.converted import quick_conversion
from tests.made import DecodeOnce, MakeOnce, _encoder


def test_a_shared_student_is_a_copy_of_the_one_that_is_made(tiny_recipe: dict[str, Any]) -> None:
    student, once = Recipe.model_validate(tiny_recipe).student, MakeOnce()
    torch.manual_seed(0)
    made = _encoder(student, 8, download=True)
    state_after = torch.get_rng_state()
    for _ in range(2):
        torch.manual_seed(0)
        shared = once(student, 8, download=True)

        assert torch.equal(torch.get_rng_state(), state_after)
        for (name, a), b in zip(made.named_parameters(), shared.parameters(), strict=True):
            assert torch.equal(a, b), name
            assert a.requires_grad == b.requires_grad, name
        with torch.no_grad():
            next(shared.parameters()).zero_()  # must not reach the next copy


def test_another_random_state_is_another_student(tiny_recipe: dict[str, Any]) -> None:
    student, once = Recipe.model_validate(tiny_recipe).student, MakeOnce()
    torch.manual_seed(0)
    first = once(student, 8, download=True)
    torch.manual_seed(0)
    torch.rand(1)

    second = once(student, 8, download=True)

    assert not torch.equal(next(first.parameters()), next(second.parameters()))


@pytest.mark.usefixtures("made_again")
def test_the_initial_student_does_not_depend_on_the_teacher(tiny_recipe: dict[str, Any]) -> None:
    first = build(Recipe.model_validate(tiny_recipe)).encoder
    tiny_recipe["teacher"]["args"]["depth"] = 3

    second = build(Recipe.model_validate(tiny_recipe)).encoder

    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_shared_pixels_are_those_of_the_file_on_its_canvas() -> None:
    with zipfile.ZipFile(BUNDLED) as archive:
        names = [name for name in archive.namelist() if name.endswith(".webp")]
        photos = [archive.read(name) for name in names[:2]]
    once = DecodeOnce()
    small, exact = Canvas(32, 40, exact=False), Canvas(32, 40, exact=True)
    for content, canvas in [*product(photos, (small, exact)), (photos[0], small)]:
        wanted, shared = (np.zeros((3, 32, 40), np.uint8) for _ in range(2))
        assert decode_into(content, wanted, canvas) == once(content, shared, canvas) == ""

        assert np.array_equal(shared, wanted)
        shared[:] = 0  # must not reach the next copy


@pytest.mark.parametrize(
    ("name", "settings"),
    [("resnet18", {"layers": (1, 1, 1, 1)}), ("convnext_atto", {"depths": (1, 1, 1, 1)})],
)
def test_a_quick_conversion_gives_the_same_file(name: str, settings: dict[str, Any]) -> None:
    network, example = timm.create_model(name, **settings).eval(), torch.rand(2, 3, 64, 64)

    def convert() -> bytes:
        return _convert(network, example, {0: "batch"}, output_names=["y"]).SerializeToString()

    wanted = convert()
    with quick_conversion():
        assert convert() == wanted
        assert convert() == wanted
