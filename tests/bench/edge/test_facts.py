"""Recognize the Jetson, JetPack and power mode; warn of misleading measurements."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType

import pytest

from hgkd_edge.bench import timing
from hgkd_edge.bench.edge import ort_device
from hgkd_edge.bench.edge.facts import (
    clock_warnings,
    gpu_clocks,
    machine_of,
    parse_nvpmodel,
    parse_release,
)


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("# R38 (release), REVISION: 2.0, GCID: 1, BOARD: generic", "38.2.0"),
        ("# R32 (release), REVISION: 6.1, GCID: 2, BOARD: t210ref", "32.6.1"),
        ("R36", None),
    ],
)
def test_l4t_release(text: str, release: str | None) -> None:
    assert parse_release(text) == release


def test_power_mode_and_clocks_as_the_tools_print_them() -> None:
    nano = "57000000.gpu\tgpu\t76800000\t921600000\t76800000"
    thor = "other\t\t1\t2\t1\ngpu-gpc-0\t\t1575000000\t1575000000\t1575000000"

    assert parse_nvpmodel("NV Power Mode: MODE_15W_6CORE\n2\n") == ("MODE_15W_6CORE", 2)
    assert parse_nvpmodel("NV Fan Mode:quiet\nNV Power Mode: MAXN\n0\n") == ("MAXN", 0)
    assert parse_nvpmodel("permission denied") == (None, None)
    assert gpu_clocks(nano) == {"min": 76.8, "max": 921.6, "now": 76.8}
    assert gpu_clocks(thor) == {"min": 1575, "max": 1575, "now": 1575}
    assert gpu_clocks("") is None


def facts_of_a_jetson(**changes: str) -> dict[str, str]:
    return {
        "nv_tegra_release": "# R35 (release), REVISION: 4.1",
        "compatible": "nvidia,p3737-0000+p3701-0005\nnvidia,p3701-0005\nnvidia,tegra234",
        "model": "Jetson AGX Orin Developer Kit",
        "nvpmodel": "NV Power Mode: MAXN\n0\n",
        "devfreq": "17000000.ga10b\tga10b \t1300500000\t1300500000\t1300500000",
        "temperatures": "thermal_zone0\ttj-thermal\t48000",
        **changes,
    }  # fmt: skip


def test_a_board_at_full_locked_clocks_has_no_warnings() -> None:
    machine = machine_of(facts_of_a_jetson())

    assert (machine.device_id, machine.jetpack) == ("agx-orin-64", "5.1.2")
    assert machine.clocks_locked is True
    assert clock_warnings(machine) == []


def test_zones_that_read_a_constant_or_are_off_are_no_temperatures() -> None:
    zones = {"CPU-therm": 41500, "PMIC-Die": 100000, "cv0-thermal": -256000, "tj-thermal": -5000}
    table = "\n".join(f"thermal_zone\t{name}\t{value}" for name, value in zones.items())

    machine = machine_of(facts_of_a_jetson(temperatures=table))

    assert machine.temperatures_c == {"CPU-therm": 41.5, "tj-thermal": -5.0}
    assert clock_warnings(machine) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"nvpmodel": "NV Power Mode: MODE_30W\n2\n"}, r"MODE_30W caps .*\(GPU 612 of 1300 MHz\)"),
        ({"nvpmodel": ""}, "power mode is unknown"),
        ({"devfreq": ""}, "cannot tell whether the clocks"),
        ({"devfreq": "17000000.ga10b\tga10b\t1\t2\t1"}, "not locked"),
        ({"temperatures": "thermal_zone0\ttj-thermal\t92000"}, "92 C already"),
    ],
)
def test_what_makes_a_number_misleading_is_reported(change: dict, expected: str) -> None:
    import re

    notes = clock_warnings(machine_of(facts_of_a_jetson(**change)))
    assert any(re.search(expected, note) for note in notes)


@pytest.mark.parametrize(
    ("modes", "warned"), [(["15W", "7W"], False), (["15W", "25W", "MAXN_SUPER"], True)]
)
def test_the_fastest_mode_of_a_board_without_maxn_is_not_called_a_cap(
    modes: list[str], warned: bool
) -> None:
    conf = "".join(f"< POWER_MODEL ID={i} NAME={name} >\n" for i, name in enumerate(modes))

    machine = machine_of(
        facts_of_a_jetson(
            compatible="nvidia,p3768-0000+p3767-0005\nnvidia,tegra234",
            nvpmodel="NV Power Mode: 15W\n0\n",
            nvpmodel_conf=conf,
        )
    )

    assert any("caps the clocks" in note for note in clock_warnings(machine)) is warned


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
def test_boards_are_recognized(compatible: str, model: str, device: str | None) -> None:
    machine = machine_of(facts_of_a_jetson(compatible=compatible, model=model))

    assert machine.is_jetson
    assert machine.device_id == device


def test_an_unknown_release_is_named_not_refused() -> None:
    machine = machine_of(facts_of_a_jetson(nv_tegra_release="# R36 (release), REVISION: 9.9"))

    assert machine.jetpack == "about 6.2 (L4T 36.9.9 is not in the table)"


def test_a_pc_is_no_jetson() -> None:
    assert not machine_of({"cpuinfo": "model name : AMD EPYC"}).is_jetson


@pytest.mark.parametrize("module", [ort_device, timing])
def test_what_is_sent_to_a_box_runs_on_python_3_8(module: ModuleType) -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text(), feature_version=(3, 8))
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            imported |= {name.name: str(node.module) for name in node.names}
        elif isinstance(node, ast.Import):
            imported |= {name.name: name.name for name in node.names}

    assert "annotations" in imported  # so that only what is assigned is ever evaluated
    assert set(imported.values()) <= {
        "__future__", "collections.abc", "dataclasses", "gc", "hgkd_edge.bench.timing",
        "hgkd_edge.bench.records", "json", "numpy", "onnxruntime", "os", "pathlib", "random", "sys",
        "time", "typing",
    }  # fmt: skip
    for node in tree.body:
        for part in ast.walk(node) if isinstance(node, ast.Assign) else ():
            if isinstance(part, ast.Subscript):
                assert imported[part.value.id] == "typing"  # type: ignore[attr-defined]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not [call for call in calls if any(word.arg == "strict" for word in call.keywords)]
