"""trtexec: versions, flags, published logs, exported times.

Sources: AGX Xavier and Xavier NX: OE4T/meta-tegra pull requests 952 and 1124; TensorRT 10.2 on a
PC: NVIDIA/TensorRT issue 4177. Exported times: the first lines of a file that NVIDIA publishes,
mobilenet.qat.onnx.engine.timing.json in NVIDIA/TensorRT tools/experimental/trt-engine-explorer
(copies out); the oldest layout is that of sampleReporting.cpp before it used the names H2D and D2H.
"""

from __future__ import annotations

import json

import pytest

from hgkd_edge.bench.edge.trtexec import (
    Engine,
    Trtexec,
    parse_log,
    parse_times,
    settings_warnings,
)
from hgkd_edge.errors import DeviceError

# fmt: off
XAVIER_NX_LOG = """[12/06/2022-15:00:20] [I] === Performance summary ===
[12/06/2022-15:00:20] [I] Throughput: 27207 qps
[12/06/2022-15:00:20] [I] Latency: min = 0.564209 ms, max = 0.593018 ms, mean = 0.573891 ms, median = 0.572998 ms, percentile(99%) = 0.587769 ms
[12/06/2022-15:00:20] [I] End-to-End Host Latency: min = 0.574707 ms, max = 0.606201 ms, mean = 0.586663 ms, median = 0.585938 ms, percentile(99%) = 0.601685 ms
[12/06/2022-15:00:20] [I] GPU Compute Time: min = 0.554932 ms, max = 0.58374 ms, mean = 0.564682 ms, median = 0.564087 ms, percentile(99%) = 0.578552 ms"""  # noqa: E501
PC_LOG = """[10/03/2024-10:47:59] [I] Latency: min = 5.38672 ms, max = 13.3664 ms, mean = 7.60628 ms, median = 7.16092 ms, percentile(90%) = 10.2996 ms, percentile(95%) = 10.8698 ms, percentile(99%) = 12.9675 ms
[10/03/2024-10:47:59] [W] * Throughput may be bound by Enqueue Time rather than GPU Compute and the GPU may be under-utilized."""  # noqa: E501
PUBLISHED_TIMES = """[
  { "startEnqMs" : 4.19666, "endEnqMs" : 4.28702, "startH2dMs" : 4.17414, "endH2dMs" : 4.17414, "startComputeMs" : 4.17414, "endComputeMs" : 4.65866, "startD2hMs" : 4.65866, "endD2hMs" : 4.65866, "h2dMs" : 0, "computeMs" : 0.484512, "d2hMs" : 0, "latencyMs" : 0.484512 }
, { "startEnqMs" : 4.29501, "endEnqMs" : 4.33191, "startH2dMs" : 4.65952, "endH2dMs" : 4.65952, "startComputeMs" : 4.65952, "endComputeMs" : 5.12992, "startD2hMs" : 5.12992, "endD2hMs" : 5.12992, "h2dMs" : 0, "computeMs" : 0.4704, "d2hMs" : 0, "latencyMs" : 0.4704 }
, { "startEnqMs" : 4.71454, "endEnqMs" : 4.74791, "startH2dMs" : 5.13056, "endH2dMs" : 5.13056, "startComputeMs" : 5.13056, "endComputeMs" : 5.6055, "startD2hMs" : 5.6055, "endD2hMs" : 5.6055, "h2dMs" : 0, "computeMs" : 0.474944, "d2hMs" : 0, "latencyMs" : 0.474944 }
]
"""  # noqa: E501
OLDEST_TIMES = """[
  { "startInMs" : 1.0, "endInMs" : 1.5, "startComputeMs" : 1.5, "endComputeMs" : 3.5, "startOutMs" : 3.5, "endOutMs" : 4.0, "inMs" : 0.5, "computeMs" : 2.0, "outMs" : 0.5, "latencyMs" : 3.0, "endToEndMs" : 3.0 }
]
"""  # noqa: E501
# fmt: on


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ("[TensorRT v8201] # /usr/src/tensorrt/bin/trtexec", (8, 2, 1)),
        ("[TensorRT v8602]", (8, 6, 2)),
        ("[TensorRT v8.6.1]", (8, 6, 1)),
        ("[TensorRT v100300]", (10, 3, 0)),
        ("[TensorRT v101602] [b10] # trtexec --help", (10, 16, 2)),
        ("[TensorRT v110000]", (11, 0, 0)),
        ("[TensorRT v11.1.0.106] [b48] # trtexec", (11, 1, 0)),
    ],
)
def test_the_version_is_read_from_the_banner(banner: str, version: tuple[int, int, int]) -> None:
    assert Trtexec.from_help("&&&& RUNNING TensorRT.trtexec " + banner).version == version


def test_a_trtexec_that_cannot_start_is_an_error_with_its_own_words() -> None:
    with pytest.raises(DeviceError, match=r"libnvinfer\.so\.8: cannot open"):
        Trtexec.from_help("trtexec: error while loading libnvinfer.so.8: cannot open shared object")


def _engine(version: tuple[int, int, int], flags: str = "", *, batch: int = 1) -> Engine:
    shapes = {"images": [batch, 3, 224, 224]}
    tool = Trtexec(version, frozenset(flags.split()))
    return Engine(tool, "net.onnx", "net.plan", shapes, dynamic=batch > 1)


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
    arguments = _engine(version, batch=8).measure(
        {"images": "a.bin"}, "times.json", copies=copies, warmup_ms=2000, duration_s=5, count=None
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
    engine = _engine(version, "--stronglyTyped --skipInference --timingCacheFile")
    arguments = engine.build(holds, wanted)

    assert [flag for flag in arguments if flag in ("--fp16", "--int8", "--stronglyTyped")] == flags
    assert arguments[-1] == "--skipInference"


@pytest.mark.parametrize("version", [(8, 6, 2), (10, 3, 0), (11, 0, 0)])
def test_int8_is_never_built_with_invented_ranges(version: tuple[int, int, int]) -> None:
    with pytest.raises(DeviceError, match="quantized ONNX"):
        _engine(version).build("fp32", "int8")


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


def test_exported_times_skip_the_warm_up_and_give_the_true_throughput() -> None:
    times = parse_times(_trace([0, 10, 200, 210, 220]), copies="in", warmup_ms=200)

    assert times.ms.tolist() == [8, 8, 8]
    assert times.queries_per_s == pytest.approx(3 / 0.028)
    assert parse_times(_trace([200]), copies="out", warmup_ms=200).ms.tolist() == [5]


def test_a_file_that_nvidia_publishes_is_read() -> None:
    times = parse_times(PUBLISHED_TIMES, copies="out", warmup_ms=0)

    assert times.ms.tolist() == [0.484512, 0.4704, 0.474944]
    assert times.queries_per_s == pytest.approx(3000 / (5.6055 - 4.17414))
    assert parse_times(PUBLISHED_TIMES, copies="in", warmup_ms=0).ms.tolist() == times.ms.tolist()


def test_the_oldest_layout_is_read_too() -> None:
    times = parse_times(OLDEST_TIMES, copies="in", warmup_ms=0)

    assert (times.ms.tolist(), times.queries_per_s) == ([3.0], pytest.approx(1000 / 3))


@pytest.mark.parametrize("text", [None, "", "[", '[{"startComputeMs": 1', "[]", "[{}]", "{}", "3"])
def test_missing_or_truncated_times_are_an_error_not_a_number(text: str | None) -> None:
    with pytest.raises(DeviceError, match="exported"):
        parse_times(text, copies="in", warmup_ms=0)
