"""Options with a wrong value where everything else is right: the error is about that option."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hgkd_edge.console import printable
from tests.test_bad_settings import COMMANDS, NO_NUMBER, NUMBERS, TEXTS, Refused
from tests.test_doors import whole as whole
from tests.test_doors import workplace as workplace

RIGHT = {
    "bench": ("run", "--duration", "0.01", "--rounds", "1"),
    "compare": ("run",),
    "data": ("photos",),
    "distill": ("cifar_small",),
    "embed": ("run", "photos"),
    "evaluate": ("run",),
    "export": ("run", "--onnx", "--precision", "int8"),
    "finetune": ("run",),
    "predict": ("run", "photo.png"),
    "pretrain": ("cifar_small",),
    "recipes validate": ("cifar_small",),
}
# They take any name or number, or (the run) are read after the data, which `cifar_small` lacks.
LENIENT = (
    *("predict --out", "predict --frames", "predict --reconnect", "data --out", "data --draw"),
    *("compare --max-drop", "distill --run", "distill --check-updates"),
)
# Their values are read; then the work starts, which takes more than a second.
STARTING = ("bench --out", "export --calib", "export --max-drop")


@pytest.mark.usefixtures("few_resamples", "workplace")
@pytest.mark.parametrize("name", RIGHT)
def test_the_error_is_about_the_option_whose_value_is_wrong(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused = Refused(name, monkeypatch, capsys)
    options: list[Any] = [p for p in COMMANDS[name].params if p.param_type_name == "option"]
    for option in options:
        label, count = option.opts[0], option.nargs
        if option.is_flag or f"{name} {label}" in STARTING:
            continue
        refused.works = f"{name} {label}" in LENIENT
        number = NO_NUMBER.search(refused(*RIGHT[name], label, *["x"] * count))
        for value in NUMBERS if number else TEXTS:
            printed = refused(*RIGHT[name], label, *[value] * count)
            word, text = label.strip("-").rstrip("s"), printable(value)
            shown = [text[:20]] if len(text) > 20 else [f"{text}'", f"{text}:"]
            named = re.search(rf"(?<![\w.])(--)?{word}s?\b", printed)
            named = named or any(each in printed for each in shown)
            assert value or "it is empty" in printed, label
            assert named or refused.works, (label, value, printed)
