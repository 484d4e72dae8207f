"""Real published lines of Nano, TX2, Xavier, Orin and Thor, and what is left of broken ones.

Sources: Nano and Xavier NX: waggle-sensor/jetson-exporter (tegrastats_test.go). TX2:
rbonghi/jetson_stats issue 187. AGX Xavier: martinkersner/gtop pull request 7. AGX Orin on JetPack
7.2: rbonghi/jetson_stats tests. Orin Nano: henrygd/beszel tests. trtexec on AGX Xavier and Xavier
NX: OE4T/meta-tegra pull requests 952 and 1124; TensorRT 10.2 on a PC: NVIDIA/TensorRT issue 4177.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgkd_edge.bench.edge import agent
from hgkd_edge.bench.edge.facts import (
    board_from_facts,
    parse_jetson_clocks,
    parse_nvpmodel,
    parse_release,
)
from hgkd_edge.bench.edge.tegrastats import parse_line, telemetry_of
from hgkd_edge.bench.edge.trtexec import (
    Trtexec,
    build_arguments,
    measure_arguments,
    parse_log,
    parse_times,
    settings_warnings,
)
from hgkd_edge.errors import DeviceError

# fmt: off
NANO = "RAM 1923/3964MB (lfb 2x2MB) SWAP 191/1982MB (cached 6MB) IRAM 0/252kB(lfb 252kB) CPU [5%@1224,4%@1224,3%@1224,6%@1224] EMC_FREQ 0%@1600 GR3D_FREQ 0%@76 APE 25 PLL@37C CPU@40C PMIC@50C GPU@40C AO@45C thermal@40C POM_5V_IN 1750/1628 POM_5V_GPU 0/0 POM_5V_CPU 366/406"  # noqa: E501
TX2 = "RAM 1689/3825MB (lfb 339x4MB) SWAP 0/1913MB (cached 0MB) CPU [3%@345,off,off,0%@345,1%@345,1%@345] EMC_FREQ 0% GR3D_FREQ 0% PLL@50.5C MCPU@50.5C PMIC@50C GPU@50C BCPU@50.5C thermal@50.3C"  # noqa: E501
XAVIER_NX_4 = "RAM 5246/7771MB (lfb 7x4MB) SWAP 983/20269MB (cached 280MB) CPU [47%@1420,23%@1420,32%@1420,22%@1420,31%@1420,96%@1420] EMC_FREQ 2%@1600 GR3D_FREQ 0%@1109 APE 150 MTS fg 1% bg 9% AO@29C GPU@31.5C PMIC@100C AUX@30C CPU@33.5C thermal@31.35C VDD_IN 6140/5510 VDD_CPU_GPU_CV 2706/2119 VDD_SOC 1074/1051"  # noqa: E501
XAVIER_NX_5 = "07-09-2024 13:31:31 RAM 3168/6851MB (lfb 2x4MB) SWAP 161/3426MB (cached 0MB) CPU [23%@1397,17%@1192,16%@1190,13%@1190,23%@1190,10%@1190] EMC_FREQ 2%@204 GR3D_FREQ 0%@[114] VIC_FREQ 115 APE 150 AUX@45C CPU@46.5C thermal@45.6C AO@45C GPU@45.5C PMIC@50C VDD_IN 2763mW/2846mW VDD_CPU_GPU_CV 650mW/670mW VDD_SOC 650mW/711mW"  # noqa: E501
AGX_XAVIER = "RAM 14700/15692MB (lfb 3x2MB) SWAP 898/8192MB (cached 23MB) CPU [0%@1190,0%@1190,0%@1190,0%@1190,0%@1190,0%@1190,0%@1190,0%@1190] EMC_FREQ 0% GR3D_FREQ 0% AO@30C GPU@30.5C Tboard@31C Tdiode@32C AUX@30.5C CPU@31.5C thermal@30.8C PMIC@100C GPU 463/463 CPU 618/618 SOC 2936/2936 CV 0/0 VDDRQ 309/309 SYS5V 3306/3306"  # noqa: E501
AGX_ORIN = "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201,4%@2201,14%@2201,30%@2201,18%@2201,10%@2201,10%@2201,33%@2201,7%@2201,5%@2201,27%@2201] EMC_FREQ 3%@3199 GR3D_FREQ 12%@[1300,1300] NVENC0 off NVDEC0 off NVJPG0 off NVJPG1 off VIC off OFA off NVDLA0 off NVDLA1 off PVA0_FREQ off APE 174 cpu@52.968C/52.968C soc2@48.406C/48.406C soc0@49.531C/49.531C gpu@47.625C/47.625C VDD_GPU_SOC 5139mW/5139mW/5139mW VDD_CPU_CV 3268mW/3268mW/3268mW VIN_SYS_5V0 5500mW/5500mW/5500mW"  # noqa: E501
ORIN_NANO = "11-15-2024 08:38:09 RAM 6185/7620MB (lfb 8x2MB) SWAP 851/3810MB (cached 1MB) CPU [15%@729,11%@729,14%@729,13%@729,11%@729,8%@729] EMC_FREQ 43%@2133 GR3D_FREQ 63%@[621] NVDEC off NVJPG off NVJPG1 off VIC off OFA off APE 200 cpu@53.968C soc2@52.437C soc0@50.75C gpu@53.343C tj@53.968C soc1@51.656C VDD_IN 12479mW/12479mW VDD_CPU_GPU_CV 4667mW/4667mW VDD_SOC 2817mW/2817mW"  # noqa: E501
ORIN_NANO_USER = "06-18-2025 11:25:24 RAM 3452/7620MB (lfb 25x4MB) SWAP 1518/16384MB (cached 174MB) CPU [1%@1420,2%@1420,0%@1420,2%@1420,2%@729,1%@729] GR3D_FREQ 0% cpu@50.031C soc2@49.031C soc0@50C gpu@49.031C tj@50.25C soc1@50.25C VDD_IN 4824mW/4824mW VDD_CPU_GPU_CV 518mW/518mW VDD_SOC 1475mW/1475mW"  # noqa: E501
XAVIER_NX_LOG = """[12/06/2022-15:00:20] [I] === Performance summary ===
[12/06/2022-15:00:20] [I] Throughput: 27207 qps
[12/06/2022-15:00:20] [I] Latency: min = 0.564209 ms, max = 0.593018 ms, mean = 0.573891 ms, median = 0.572998 ms, percentile(99%) = 0.587769 ms
[12/06/2022-15:00:20] [I] End-to-End Host Latency: min = 0.574707 ms, max = 0.606201 ms, mean = 0.586663 ms, median = 0.585938 ms, percentile(99%) = 0.601685 ms
[12/06/2022-15:00:20] [I] GPU Compute Time: min = 0.554932 ms, max = 0.58374 ms, mean = 0.564682 ms, median = 0.564087 ms, percentile(99%) = 0.578552 ms"""  # noqa: E501
PC_LOG = """[10/03/2024-10:47:59] [I] Latency: min = 5.38672 ms, max = 13.3664 ms, mean = 7.60628 ms, median = 7.16092 ms, percentile(90%) = 10.2996 ms, percentile(95%) = 10.8698 ms, percentile(99%) = 12.9675 ms
[10/03/2024-10:47:59] [W] * Throughput may be bound by Enqueue Time rather than GPU Compute and the GPU may be under-utilized."""  # noqa: E501
# fmt: on


@pytest.mark.parametrize(
    ("line", "total", "rails", "gpu", "emc_mhz", "ram"),
    [
        (NANO, ("POM_5V_IN", 1750), 3, (76, 0), 1600, 1923),
        (TX2, None, 0, (None, 0), None, 1689),
        (XAVIER_NX_4, ("VDD_IN", 6140), 3, (1109, 0), 1600, 5246),
        (XAVIER_NX_5, ("VDD_IN", 2763), 3, (114, 0), 204, 3168),
        (AGX_XAVIER, ("CPU+CV+GPU+SOC+SYS5V+VDDRQ", 7632), 6, (None, 0), None, 14700),
        (AGX_ORIN, ("VDD_CPU_CV+VDD_GPU_SOC+VIN_SYS_5V0", 13907), 3, (1300, 12), 3199, 20642),
        (ORIN_NANO, ("VDD_IN", 12479), 3, (621, 63), 2133, 6185),
        (ORIN_NANO_USER, ("VDD_IN", 4824), 3, (None, 0), None, 3452),
        ("GR3D_FREQ @[1000,1000,1000]", None, 0, (1000, None), None, None),
    ],
    ids=["nano", "tx2", "nx jp4", "nx jp5", "agx xavier", "agx orin", "orin", "not root", "thor"],
)
def test_every_generations_line_is_read(line, total, rails, gpu, emc_mhz, ram) -> None:
    sample = parse_line(line)

    assert sample is not None
    assert sample.total_mw() == total
    assert len(sample.rails_mw) == rails
    assert (sample.gpu_mhz, sample.gpu_load) == gpu
    assert (sample.emc_mhz, sample.ram_mb) == (emc_mhz, ram)
    assert "PMIC" not in sample.temperatures_c


def test_temperatures_of_old_and_new_lines() -> None:
    assert parse_line(NANO).temperatures_c["GPU"] == 40
    assert parse_line(AGX_ORIN).temperatures_c["gpu"] == 47.625
    assert parse_line("cv0@-256C RAM 1/2MB").temperatures_c == {}


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    parse_line(text)


@given(st.sampled_from([NANO, AGX_XAVIER, AGX_ORIN, ORIN_NANO]), st.data())
def test_a_line_cut_anywhere_never_invents_power(line: str, data: st.DataObject) -> None:
    cut = line[: data.draw(st.integers(0, len(line)))]
    sample = parse_line(cut)

    if sample is not None:
        whole = parse_line(line).rails_mw
        # The last rail may be cut within its average, never within the value that is used.
        assert all(whole[name] == value for name, value in sample.rails_mw.items())


def test_a_run_is_summed_up_and_bad_lines_are_counted() -> None:
    lines = [(0.0, ORIN_NANO), (0.1, "garbage"), (0.2, ORIN_NANO.replace("12479mW/", "14479mW/"))]

    seen = telemetry_of(
        lines, source="tegrastats", throughput_ips=100.0, idle=[(0, ORIN_NANO_USER)]
    )

    assert seen is not None
    assert (seen.samples, seen.rejected_lines) == (2, 1)
    assert seen.total_mean_w == pytest.approx(13.479)
    assert seen.total_peak_w == pytest.approx(14.479)
    assert seen.energy_per_image_mj == pytest.approx(134.79)
    assert seen.idle_w == pytest.approx(4.824)
    assert not seen.throttled


def test_throttling_is_seen_in_clocks_under_load_and_in_event_counters() -> None:
    slow = ORIN_NANO.replace("63%@[621]", "99%@[306]")
    fast = ORIN_NANO.replace("63%@[621]", "99%@[621]")

    seen = telemetry_of(
        [(0, fast), (1, slow)],
        source="tegrastats",
        throughput_ips=1,
        overcurrent={"oc3_event_cnt": 2},
    )

    assert seen is not None
    assert seen.throttle_reasons == [
        "2 over-current events (oc3_event_cnt)",
        "GPU clock fell from 621 to 306 MHz under load",
    ]


def test_a_log_without_a_usable_line_gives_no_telemetry() -> None:
    assert telemetry_of([(0, "")], source="tegrastats", throughput_ips=1) is None


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ("[TensorRT v8201] # /usr/src/tensorrt/bin/trtexec", (8, 2, 1)),
        ("[TensorRT v8602]", (8, 6, 2)),
        ("[TensorRT v8.6.1]", (8, 6, 1)),
        ("[TensorRT v100300]", (10, 3, 0)),
        ("[TensorRT v101602] [b10] # trtexec --help", (10, 16, 2)),
        ("[TensorRT v110000]", (11, 0, 0)),
    ],
)
def test_the_version_is_read_from_the_banner(banner: str, version: tuple[int, int, int]) -> None:
    assert Trtexec.from_help("&&&& RUNNING TensorRT.trtexec " + banner).version == version


def test_a_trtexec_that_cannot_start_is_an_error_with_its_own_words() -> None:
    with pytest.raises(DeviceError, match=r"libnvinfer\.so\.8: cannot open"):
        Trtexec.from_help("trtexec: error while loading libnvinfer.so.8: cannot open shared object")


def _tool(version: tuple[int, int, int], flags: str = "") -> Trtexec:
    return Trtexec(version, frozenset(flags.split()))


@pytest.mark.parametrize(
    ("version", "copies", "has", "lacks"),
    [
        ((8, 5, 2), "in", ["--useCudaGraph", "--useSpinWait"], ["--noDataTransfers"]),
        ((8, 5, 2), "out", ["--useCudaGraph", "--noDataTransfers"], ["--includeDataTransfers"]),
        ((10, 3, 0), "out", ["--useSpinWait", "--noDataTransfers"], []),
        ((11, 0, 0), "in", ["--includeDataTransfers"], ["--useCudaGraph", "--useSpinWait"]),
        ((11, 0, 0), "out", [], ["--includeDataTransfers", "--noDataTransfers"]),
    ],
)
def test_what_is_measured_is_the_same_in_every_version(version, copies, has, lacks) -> None:
    arguments = measure_arguments(
        _tool(version),
        shapes={"images": [8, 3, 224, 224]},
        dynamic=True,
        copies=copies,
        warmup_ms=2000,
        duration_s=5,
        count=None,
    )

    assert {"--shapes=images:8x3x224x224", "--warmUp=2000", "--duration=5", *has} <= set(arguments)
    assert not set(lacks) & set(arguments)


@pytest.mark.parametrize(
    ("version", "holds", "wanted", "flags"),
    [
        ((8, 5, 2), "fp32", "fp32", []),
        ((8, 5, 2), "fp32", "fp16", ["--fp16"]),
        ((8, 5, 2), "fp16", "fp16", ["--fp16"]),
        ((8, 5, 2), "int8", "int8", ["--int8", "--fp16"]),
        ((10, 3, 0), "int8", "int8", ["--stronglyTyped"]),
        ((10, 3, 0), "fp32", "fp16", ["--fp16"]),
        ((11, 0, 0), "int8", "int8", []),
    ],
)
def test_precision_flags_by_version(version, holds, wanted, flags) -> None:
    arguments = build_arguments(
        _tool(version, "--stronglyTyped --skipInference --timingCacheFile"),
        shapes={"images": [1, 3, 8, 8]},
        dynamic=False,
        model_precision=holds,
        precision=wanted,
    )

    assert [flag for flag in arguments if flag in ("--fp16", "--int8", "--stronglyTyped")] == flags
    assert arguments[-1] == "--skipInference"


@pytest.mark.parametrize("version", [(8, 6, 2), (10, 3, 0), (11, 0, 0)])
def test_int8_is_never_built_with_invented_ranges(version: tuple[int, int, int]) -> None:
    with pytest.raises(DeviceError, match="quantised ONNX"):
        build_arguments(
            _tool(version), shapes={}, dynamic=False, model_precision="fp32", precision="int8"
        )


def test_published_logs_are_read() -> None:
    xavier, pc = parse_log(XAVIER_NX_LOG.splitlines()), parse_log(PC_LOG.splitlines())

    assert xavier.medians_ms == {"Latency": 0.572998, "GPU Compute Time": 0.564087}
    assert pc.medians_ms == {"Latency": 7.16092}
    assert "bound by Enqueue Time" in settings_warnings(pc, copies="in")[0]


def test_settings_that_were_not_meant_are_reported() -> None:
    # Lines as TensorRT 10.9 prints them with its defaults.
    log = parse_log(
        [
            "[04/07/2025-23:59:33] [I] Data transfers: Enabled",
            "[04/07/2025-23:59:33] [I] Spin-wait: Disabled",
            "[04/07/2025-23:59:33] [I] CUDA Graph: Enabled",
            "[04/07/2025-23:59:46] [I] Engine built in 10.7204 sec.",
            "[04/07/2025-23:59:50] [I] Warmup completed 135 queries over 200 ms",
        ]
    )

    assert settings_warnings(log, copies="out") == [
        "trtexec ran with Data transfers Enabled, not Disabled",
        "trtexec ran with Spin-wait Disabled, not Enabled",
    ]
    assert (log.build_s, log.warmup_runs) == (10.7204, 135)


def _trace(starts: list[float]) -> str:
    return json.dumps(
        [
            {"startH2dMs": s, "startComputeMs": s + 1, "endD2hMs": s + 8, "computeMs": 5.0,
             "latencyMs": 8.0}
            for s in starts
        ]
    )  # fmt: skip


def test_exported_times_leave_the_warm_up_out_and_give_the_true_throughput() -> None:
    times = parse_times(_trace([0, 10, 200, 210, 220]), copies="in", warmup_ms=200)

    assert times.ms.tolist() == [8, 8, 8]
    assert times.queries_per_s == pytest.approx(3 / 0.028)
    assert parse_times(_trace([200]), copies="out", warmup_ms=200).ms.tolist() == [5]


@pytest.mark.parametrize("text", [None, "", "[", '[{"startComputeMs": 1', "[]", "[{}]", "{}", "3"])
def test_missing_or_truncated_times_are_an_error_not_a_number(text: str | None) -> None:
    with pytest.raises(DeviceError, match="exported"):
        parse_times(text, copies="in", warmup_ms=0)


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
            "glob", "hashlib", "gc", "json", "numpy", "onnxruntime", "os", "platform", "select",
            "shutil", "signal", "subprocess", "sys", "threading", "time",
        }  # fmt: skip


def test_rails_are_read_from_the_sensors_where_there_is_no_tegrastats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hgkd_edge.bench.edge.agent import facts, telemetry

    new = tmp_path / "sys/bus/i2c/devices/1-0040/hwmon/hwmon3"
    old = tmp_path / "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    for folder, files in (
        (new, {"in1_label": "VDD_IN", "in1_input": "5000", "curr1_input": "1200",
               "in2_label": "NC", "in2_input": "1", "curr2_input": "1"}),
        (old, {"rail_name_0": "POM_5V_IN", "in_power0_input": "1750"}),
    ):  # fmt: skip
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_text(text + "\n")
    monkeypatch.setattr(facts, "ROOT", str(tmp_path))

    assert telemetry.rails() == [("VDD_IN", 6000), ("POM_5V_IN", 1750)]
    assert parse_line("VDD_IN 6000mW").total_mw() == ("VDD_IN", 6000)
