"""Which Jetson, which JetPack, which mode; and what makes a number misleading."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from hgkd_edge.bench import method
from hgkd_edge.bench.edge import agent
from hgkd_edge.bench.edge.facts import (
    board_from_facts,
    parse_jetson_clocks,
    parse_nvpmodel,
    parse_release,
)


@pytest.mark.parametrize(
    ("text", "packages", "release"),
    [
        ("# R38 (release), REVISION: 2.0, GCID: 1, BOARD: generic", "", "38.2.0"),
        ("# R32 (release), REVISION: 6.1, GCID: 2, BOARD: t210ref", "", "32.6.1"),
        ("", "nvidia-l4t-core 36.4.3-20250107174145", "36.4.3"),
        ("", "dpkg-query: no packages found matching nvidia-l4t-core", None),
    ],
)
def test_l4t_release(text: str, packages: str, release: str | None) -> None:
    assert parse_release(text, packages) == release


def test_power_mode_and_clocks_as_the_tools_print_them() -> None:
    locked = "GPU MinFreq=1020000000 MaxFreq=1020000000 CurrentFreq=1020000000\nNV Power Mode: X"
    thor = "gpu-gpc-0 MinFreq=1575000000 MaxFreq=1575000000 CurrentFreq=1575000000"

    assert parse_nvpmodel("NV Power Mode: MODE_15W_6CORE\n2\n") == ("MODE_15W_6CORE", 2)
    assert parse_nvpmodel("NV Fan Mode:quiet\nNV Power Mode: MAXN\n0\n") == ("MAXN", 0)
    assert parse_nvpmodel("permission denied") == (None, None)
    assert parse_jetson_clocks(locked) == {"min": 1020, "max": 1020, "now": 1020}
    assert parse_jetson_clocks(thor) == {"min": 1575, "max": 1575, "now": 1575}
    assert parse_jetson_clocks("Error: Run this script as root") is None


def _facts(**changes: object) -> dict:
    return {
        "nv_tegra_release": "# R35 (release), REVISION: 4.1",
        "compatible": "nvidia,p3737-0000+p3701-0005\nnvidia,p3701-0005\nnvidia,tegra234",
        "model": "Jetson AGX Orin Developer Kit",
        "nvpmodel": "NV Power Mode: MAXN\n0\n",
        "devfreq": [
            {"path": "17000000.ga10b", "name": "ga10b", "min_freq": 1300500000,
             "max_freq": 1300500000, "cur_freq": 1300500000}
        ],
        "temperatures": {"tj-thermal": 48.0},
        **changes,
    }  # fmt: skip


def test_a_board_at_full_locked_clocks_has_no_warnings() -> None:
    board = board_from_facts(_facts())

    assert board.device is not None
    assert (board.device.id, board.jetpack, board.clocks_locked) == ("agx-orin-64", "5.1.2", True)
    assert board.warnings() == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nvpmodel": "NV Power Mode: MODE_30W\n2\n"}, r"MODE_30W caps .*\(GPU 612 of 1300 MHz\)"),
        ({"nvpmodel": None}, "power mode is unknown"),
        ({"devfreq": []}, "cannot be told"),
        ({"jetson_clocks": "GPU MinFreq=1 MaxFreq=2 CurrentFreq=1"}, "not locked"),
        ({"temperatures": {"tj-thermal": 92.0}}, "92 C already"),
    ],
)
def test_what_makes_a_number_misleading_is_said(change: dict, said: str) -> None:
    import re

    assert any(re.search(said, note) for note in board_from_facts(_facts(**change)).warnings())


@pytest.mark.parametrize(
    ("modes", "warned"), [(["15W", "7W"], False), (["15W", "25W", "MAXN_SUPER"], True)]
)
def test_the_fastest_mode_of_a_board_without_maxn_is_not_called_a_cap(
    modes: list[str], warned: bool
) -> None:
    conf = "".join(f"< POWER_MODEL ID={i} NAME={name} >\n" for i, name in enumerate(modes))

    board = board_from_facts(
        _facts(
            compatible="nvidia,p3768-0000+p3767-0005\nnvidia,tegra234",
            nvpmodel="NV Power Mode: 15W\n0\n",
            nvpmodel_conf=conf,
        )
    )

    assert any("caps the clocks" in note for note in board.warnings()) is warned


@pytest.mark.parametrize(
    ("compatible", "model", "device"),
    [
        ("nvidia,p3449-0000-b00+p3448-0000-b00\nnvidia,jetson-nano\nnvidia,tegra210",
         "NVIDIA Jetson Nano Developer Kit", "nano"),
        ("nvidia,p3509-0000+p3668-0000\nnvidia,tegra194", "NVIDIA Jetson Xavier NX Developer Kit",
         "xavier-nx"),
        ("nvidia,p2972-0000\nnvidia,tegra194", "Jetson-AGX", "agx-xavier"),
        ("nvidia,p3768-0000+p3767-0000\nnvidia,tegra234", "", "orin-nx-16"),
        ("nvidia,tegra264", "NVIDIA Jetson AGX Thor Developer Kit", "agx-thor"),
        ("nvidia,tegra999", "Jetson of the future", None),
    ],
)  # fmt: skip
def test_boards_are_recognised(compatible: str, model: str, device: str | None) -> None:
    board = board_from_facts(_facts(compatible=compatible, model=model))

    assert board.is_jetson
    assert (board.device.id if board.device else None) == device


def test_an_unknown_release_is_named_not_refused() -> None:
    board = board_from_facts(_facts(nv_tegra_release="# R36 (release), REVISION: 9.9"))

    assert board.jetpack == "about 6.2 (L4T 36.9.9 is not in the table)"


def test_a_pc_is_no_jetson() -> None:
    assert not board_from_facts({"cpuinfo": "model name : AMD EPYC"}).is_jetson


@pytest.mark.parametrize("version", [(3, 6), (3, 8)])
def test_the_agent_runs_on_the_pythons_of_old_jetsons(version: tuple[int, int]) -> None:
    for file in Path(agent.__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text(), filename=str(file), feature_version=version)
        imported = {
            (node.names[0].name if isinstance(node, ast.Import) else node.module or ".").split(".")[
                0
            ]
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, "level", 0)
        }
        assert imported <= {
            "base64", "fcntl", "glob", "hashlib", "json", "numpy", "onnxruntime", "os", "platform",
            "queue", "shutil", "signal", "subprocess", "sys", "threading", "time", "types",
            "typing", "zlib",
        }  # fmt: skip


def test_the_method_that_is_sent_along_runs_on_python_3_7() -> None:
    tree = ast.parse(Path(method.__file__).read_text(), feature_version=(3, 7))
    imported = {
        name.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }

    assert "annotations" in imported  # so that only what is assigned is ever evaluated
    for node in tree.body:
        for part in ast.walk(node) if isinstance(node, ast.Assign) else ():
            if isinstance(part, ast.Subscript):
                assert imported[part.value.id] == "typing"  # type: ignore[attr-defined]
