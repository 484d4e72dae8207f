"""Real published lines of Nano, TX2, Xavier, Orin and Thor, and the usable parts of broken ones.

Sources: Nano and Xavier NX: waggle-sensor/jetson-exporter (tegrastats_test.go). TX2:
rbonghi/jetson_stats issue 187. AGX Xavier: martinkersner/gtop pull request 7. AGX Orin on JetPack
7.2: rbonghi/jetson_stats tests. Orin Nano: henrygd/beszel tests. Thor: sunggonkim/JetsonDLAGreen
(tests/test_tegrastats_telemetry.py). The rails of AGX Orin on JetPack 5 with VDDQ_VDD2_1V8AO are
from a user's notes on running ResNet-50 on that board.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgkd_edge.bench.edge.tegrastats import parse_line, telemetry_of

# fmt: off
NANO = "RAM 1923/3964MB (lfb 2x2MB) SWAP 191/1982MB (cached 6MB) IRAM 0/252kB(lfb 252kB) CPU [5%@1224,4%@1224,3%@1224,6%@1224] EMC_FREQ 0%@1600 GR3D_FREQ 0%@76 APE 25 PLL@37C CPU@40C PMIC@50C GPU@40C AO@45C thermal@40C POM_5V_IN 1750/1628 POM_5V_GPU 0/0 POM_5V_CPU 366/406"  # noqa: E501
TX2 = "RAM 1689/3825MB (lfb 339x4MB) SWAP 0/1913MB (cached 0MB) CPU [3%@345,off,off,0%@345,1%@345,1%@345] EMC_FREQ 0% GR3D_FREQ 0% PLL@50.5C MCPU@50.5C PMIC@50C GPU@50C BCPU@50.5C thermal@50.3C"  # noqa: E501
TX2_POWER = "EMC_FREQ 0%@1600 GR3D_FREQ 0%@114 APE 150 MTS fg 0% bg 1% PLL@39C MCPU@39C PMIC@50C Tboard@35C GPU@37C BCPU@39C thermal@38.5C Tdiode@37C VDD_SYS_GPU 77/77 VDD_SYS_SOC 539/539 VDD_IN 2930/3405 VDD_SYS_CPU 539/937 VDD_SYS_DDR 727/758"  # noqa: E501
XAVIER_NX_4 = "RAM 5246/7771MB (lfb 7x4MB) SWAP 983/20269MB (cached 280MB) CPU [47%@1420,23%@1420,32%@1420,22%@1420,31%@1420,96%@1420] EMC_FREQ 2%@1600 GR3D_FREQ 0%@1109 APE 150 MTS fg 1% bg 9% AO@29C GPU@31.5C PMIC@100C AUX@30C CPU@33.5C thermal@31.35C VDD_IN 6140/5510 VDD_CPU_GPU_CV 2706/2119 VDD_SOC 1074/1051"  # noqa: E501
XAVIER_NX_5 = "07-09-2024 13:31:31 RAM 3168/6851MB (lfb 2x4MB) SWAP 161/3426MB (cached 0MB) CPU [23%@1397,17%@1192,16%@1190,13%@1190,23%@1190,10%@1190] EMC_FREQ 2%@204 GR3D_FREQ 0%@[114] VIC_FREQ 115 APE 150 AUX@45C CPU@46.5C thermal@45.6C AO@45C GPU@45.5C PMIC@50C VDD_IN 2763mW/2846mW VDD_CPU_GPU_CV 650mW/670mW VDD_SOC 650mW/711mW"  # noqa: E501
AGX_XAVIER = "RAM 14700/15692MB (lfb 3x2MB) SWAP 898/8192MB (cached 23MB) CPU [0%@1190,0%@1190,0%@1190,0%@1190,0%@1190,0%@1190,0%@1190,0%@1190] EMC_FREQ 0% GR3D_FREQ 0% AO@30C GPU@30.5C Tboard@31C Tdiode@32C AUX@30.5C CPU@31.5C thermal@30.8C PMIC@100C GPU 463/463 CPU 618/618 SOC 2936/2936 CV 0/0 VDDRQ 309/309 SYS5V 3306/3306"  # noqa: E501
AGX_ORIN = "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201,4%@2201,14%@2201,30%@2201,18%@2201,10%@2201,10%@2201,33%@2201,7%@2201,5%@2201,27%@2201] EMC_FREQ 3%@3199 GR3D_FREQ 12%@[1300,1300] NVENC0 off NVDEC0 off NVJPG0 off NVJPG1 off VIC off OFA off NVDLA0 off NVDLA1 off PVA0_FREQ off APE 174 cpu@52.968C/52.968C soc2@48.406C/48.406C soc0@49.531C/49.531C gpu@47.625C/47.625C VDD_GPU_SOC 5139mW/5139mW/5139mW VDD_CPU_CV 3268mW/3268mW/3268mW VIN_SYS_5V0 5500mW/5500mW/5500mW"  # noqa: E501
ORIN_NANO = "11-15-2024 08:38:09 RAM 6185/7620MB (lfb 8x2MB) SWAP 851/3810MB (cached 1MB) CPU [15%@729,11%@729,14%@729,13%@729,11%@729,8%@729] EMC_FREQ 43%@2133 GR3D_FREQ 63%@[621] NVDEC off NVJPG off NVJPG1 off VIC off OFA off APE 200 cpu@53.968C soc2@52.437C soc0@50.75C gpu@53.343C tj@53.968C soc1@51.656C VDD_IN 12479mW/12479mW VDD_CPU_GPU_CV 4667mW/4667mW VDD_SOC 2817mW/2817mW"  # noqa: E501
ORIN_NANO_USER = "06-18-2025 11:25:24 RAM 3452/7620MB (lfb 25x4MB) SWAP 1518/16384MB (cached 174MB) CPU [1%@1420,2%@1420,0%@1420,2%@1420,2%@729,1%@729] GR3D_FREQ 0% cpu@50.031C soc2@49.031C soc0@50C gpu@49.031C tj@50.25C soc1@50.25C VDD_IN 4824mW/4824mW VDD_CPU_GPU_CV 518mW/518mW VDD_SOC 1475mW/1475mW"  # noqa: E501
AGX_ORIN_5 = "NVDLA0_FREQ @1600 APE 174 CV0@73.625C CPU@77.281C Tboard@62C SOC2@70C Tdiode@62.25C SOC0@69.531C CV1@72.5C GPU@69.125C tj@77.281C SOC1@68.968C CV2@67.25C VDD_GPU_SOC 3150mW/2971mW VDD_CPU_CV 14312mW/12415mW VIN_SYS_5V0 4968mW/5048mW VDDQ_VDD2_1V8AO 1091mW/1091mW"  # noqa: E501
THOR = "08-08-2026 21:00:39 RAM 8353/125749MB (lfb 31x4MB) CPU [90%@2601,75%@2601,off,7%@2601] EMC_FREQ 34%@4266 GR3D_FREQ 87%@[1574,1574,1574] NVENC0_FREQ @1691 VIC off cpu@58.25C/61.75C tj@66.625C/66.625C gpu@56.937C/66.625C soc012@55.375C/58.781C soc345@55.812C/60.031C VDD_GPU 37939mW/8660mW/37939mW VDD_CPU_SOC_MSS 30059mW/12281mW/30059mW VIN_SYS_5V0 15486mW/7424mW/15486mW VIN 124486mW/36487mW/124486mW"  # noqa: E501
# fmt: on


@pytest.mark.parametrize(
    ("line", "total", "rails", "gpu", "emc_mhz", "ram"),
    [
        (NANO, ("POM_5V_IN", 1750), 3, (76, 0), 1600, 1923),
        (TX2, None, 0, (None, 0), None, 1689),
        (TX2_POWER, ("VDD_IN", 2930), 5, (114, 0), 1600, None),
        (XAVIER_NX_4, ("VDD_IN", 6140), 3, (1109, 0), 1600, 5246),
        (XAVIER_NX_5, ("VDD_IN", 2763), 3, (114, 0), 204, 3168),
        (AGX_XAVIER, ("CPU+CV+GPU+SOC+SYS5V+VDDRQ", 7632), 6, (None, 0), None, 14700),
        (AGX_ORIN, ("VDD_CPU_CV+VDD_GPU_SOC+VIN_SYS_5V0", 13907), 3, (1300, 12), 3199, 20642),
        (ORIN_NANO, ("VDD_IN", 12479), 3, (621, 63), 2133, 6185),
        (ORIN_NANO_USER, ("VDD_IN", 4824), 3, (None, 0), None, 3452),
        (AGX_ORIN_5, ("VDD_CPU_CV+VDD_GPU_SOC+VIN_SYS_5V0", 22430), 4, (None, None), None, None),
        (THOR, ("VIN", 124486), 4, (1574, 87), 4266, 8353),
        ("GR3D_FREQ @[1000,1000,1000]", None, 0, (1000, None), None, None),
    ],
    ids=[
        "nano",
        "tx2",
        "tx2 rails",
        "nx jp4",
        "nx jp5",
        "agx xavier",
        "agx orin",
        "orin",
        "not root",
        "agx orin jp5",
        "thor",
        "thor idle",
    ],
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


@given(st.sampled_from([NANO, AGX_XAVIER, AGX_ORIN, ORIN_NANO, THOR]), st.data())
def test_a_line_cut_anywhere_never_invents_power(line: str, data: st.DataObject) -> None:
    cut = line[: data.draw(st.integers(0, len(line)))]
    sample = parse_line(cut)

    if sample is not None:
        whole = parse_line(line).rails_mw
        # The last rail may be cut within its average, never within the value that is used.
        assert all(whole[name] == value for name, value in sample.rails_mw.items())


def test_a_run_is_summed_up_and_bad_lines_are_counted() -> None:
    lines = [(0.0, ORIN_NANO), (0.1, "garbage"), (0.2, ORIN_NANO.replace("12479mW/", "14479mW/"))]

    seen = telemetry_of(lines, throughput_ips=100.0, idle=[(0, ORIN_NANO_USER)])

    assert seen is not None
    assert (seen.samples, seen.rejected_lines) == (2, 1)
    assert seen.total_mean_w == pytest.approx(13.479)
    assert seen.total_peak_w == pytest.approx(14.479)
    assert seen.energy_per_image_mj == pytest.approx(134.79)
    assert seen.idle_w == pytest.approx(4.824)
    assert not seen.throttled


def test_a_line_cut_before_the_total_does_not_bend_it() -> None:
    cut = THOR[: THOR.index(" VIN 1")]

    seen = telemetry_of([(0, THOR), (1, cut), (2, THOR)], throughput_ips=1, idle=[(0, cut)])

    assert seen is not None
    assert (seen.total_rail, seen.total_mean_w) == ("VIN", pytest.approx(124.486))


def test_throttling_is_seen_in_clocks_under_load_and_in_event_counters() -> None:
    slow = ORIN_NANO.replace("63%@[621]", "99%@[306]")
    fast = ORIN_NANO.replace("63%@[621]", "99%@[621]")

    seen = telemetry_of(
        [(0, fast), (1, slow)],
        throughput_ips=1,
        overcurrent={"oc3_event_cnt": 2},
    )

    assert seen is not None
    assert seen.throttle_reasons == [
        "2 over-current events (oc3_event_cnt)",
        "GPU clock fell from 621 to 306 MHz under load",
    ]


def test_an_idle_gpu_that_clocks_down_is_not_throttled() -> None:
    clocks = ("0%@[306]", "99%@[621]")
    lines = [(0.0, ORIN_NANO.replace("63%@[621]", clock)) for clock in clocks]

    seen = telemetry_of(lines, throughput_ips=1)

    assert seen is not None
    assert not seen.throttled


@pytest.mark.parametrize(
    "line",
    [
        "VDD_GPU 2000mW/2000mW NC 900mW/900mW VDD_CPU 1000mW/1000mW",
        "VDD_GPU 2000/2000 NC 900/900 VDD_CPU 1000/1000",
        "VDD_GPU 2000mW NC_2 900mW VDD_CPU 1000mW nc 5mW",
    ],
)
def test_a_channel_that_is_not_connected_is_no_rail_and_in_no_total(line: str) -> None:
    seen = telemetry_of([(0, line)], throughput_ips=1)

    assert seen is not None
    assert sorted(seen.rails) == ["VDD_CPU", "VDD_GPU"]
    assert (seen.total_rail, seen.total_mean_w) == ("VDD_CPU+VDD_GPU", 3.0)


def test_a_log_without_a_usable_line_gives_no_telemetry() -> None:
    assert telemetry_of([(0, "")], throughput_ips=1) is None
