"""Small records as commands leave them, for the screens of their results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hgkd_edge.bench.records import Refusal
from hgkd_edge.comparison.rows import Circumstances, Comparison, Group, Row
from hgkd_edge.tasks.answers import Detection, FileAnswer, Found, Label

if TYPE_CHECKING:
    from hgkd_edge.distillation.check import Checked
    from hgkd_edge.distillation.dry_run import DryRun

RUN = "runs/shop"
METHOD = "bootstrap over images, 95 %"

DISTILLED: dict[str, Any] = {
    "held_out": {"sites": "masked", "photos": 64, "student": 0.612, "mean_token": 0.104},
    "warnings": ["2 of 640 images could not be read"],
}
CHECKED: dict[str, Any] = {
    "signs": ["predicts teacher features of 64 held-out images with cosine 0.41"],
    "doubts": ["k-NN top-1 31.0 % on 64 val images, 30.5 % before distillation"],
    "hours": 3.2,
    "images_per_s": 118.0,
}
FEATURES: dict[str, Any] = {
    "photos": {"train": 1628, "test": 372},
    "split": "test",
    "distilled": {"knn": 0.565, "linear_probe": 0.659},
    "untrained": {"knn": 0.352, "linear_probe": 0.384},
    "majority": 0.14,
    "intervals": {
        "distilled": {"knn": [0.51, 0.615], "linear_probe": [0.609, 0.704]},
        "untrained": {"knn": [0.306, 0.402], "linear_probe": [0.336, 0.434]},
        "majority": [0.109, 0.179],
    },
    "interval_method": "Wilson score interval, 95 %",
}
SCORES: dict[str, Any] = {
    "task": "classify",
    "photos": 372,
    "split": "test",
    "scores": {
        "top1": 0.712,
        "top5": 0.961,
        "per_class": {"a dress": 0.8, "long sleeve, with a very long name of its class": 0.55},
    },
    "intervals": {"top1": [0.664, 0.756]},
    "interval_method": METHOD,
    "baseline": {"name": "majority class", "score": 0.14},
}


FINETUNED: dict[str, Any] = {
    **SCORES,
    "init": "distilled",
    "metric": "top1",
    "model": f"{RUN}/model.safetensors",
    "card": f"{RUN}/model_card.md",
    "int8_score": 0.709,
}
DRY_RUN: dict[str, Any] = {
    "run": "shop",
    "images": 41_200,
    "seconds": {"set_up": 12.4, "targets": 1_830.0, "training": 52_000.0, "checkpoints": 41.0},
    "total_seconds": 53_883.4,
    "images_per_s": 93.7,
    "memory_bytes": 6_100_000_000,
    "gpu_memory_bytes": None,
    "run_bytes": 410_000_000,
    "cache_bytes": 16_200_000_000,
    "free_bytes": {"run": 88_000_000_000, "cache": 9_000_000_000},
}


def checked() -> Checked:
    """A distillation with mixed signs."""
    from hgkd_edge.distillation.check import Checked  # loads torch

    return Checked.model_validate(CHECKED)


def dry_run() -> DryRun:
    """A run that does not fit on its disk."""
    from hgkd_edge.distillation.dry_run import DryRun  # loads torch

    return DryRun.model_validate(DRY_RUN)


def _proof(precision: str, **other: Any) -> dict[str, Any]:
    nothing = {"max_abs_error": 4.8e-07, "cosine": 1.0, "noise": None, "top1_agreement": None}
    return {"precision": precision, "iou": None, **nothing, **other}


EXPORT: dict[str, Any] = {
    "verified_on": {"split": "test", "photos": 64},
    "files": [
        {
            "kind": "onnx", "precision": "fp32", "path": f"{RUN}/export/shop.fp32.onnx",
            "size_bytes": 2_900_000, "verification": _proof("fp32", top1_agreement=1.0),
        },
        {
            "kind": "onnx", "precision": "int8", "flavor": "cpu",
            "path": f"{RUN}/export/shop.int8-cpu.onnx", "size_bytes": 800_000,
            "verification": _proof("int8", noise=0.041, cosine=0.9991, top1_agreement=0.984),
            "accuracy": {
                "metric": "top1", "score": 71.0, "float_score": 71.2, "drop": 0.2,
                "max_drop": 0.5, "kept_float": ["layer4.1.conv2"],
            },
        },
        {
            "kind": "engine", "precision": "fp16", "path": f"{RUN}/export/shop.fp16.plan",
            "size_bytes": 1_700_000, "verification": None, "backend": "tensorrt_rtx",
            "version": "1.7", "device": "compute capability 8.9",
        },
    ],
    "bundles": [
        {
            "bundle": "jetson", "path": f"{RUN}/export/jetson", "files": ["README.md"],
            "made_from": f"{RUN}/export/shop.fp32.onnx",
        },
    ],
    "sensitivity": {"cpu": [{"damage": 0.21, "module": "layer4.1.conv2"}]},
}  # fmt: skip
DEMO: dict[str, Any] = {
    "run": RUN,
    "held_out": {"student": 0.612, "mean_token": 0.104, "sites": "masked"},
    "evaluation": FEATURES,
    "export": {
        "verification": {"outputs": [{"name": "logits", "max_abs_error": 4.8e-07}]},
        "verified_on": {"split": "test", "photos": 64},
        "engine": {
            "kind": "engine",
            "precision": "fp32",
            "path": "export/shop.fp32.plan",
            "size_bytes": 6_100_000,
            "backend": "tensorrt_rtx",
            "version": "1.7.1.116",
        },
    },
    "sparse_to_dense": 1.4e-6,
    "latency": {"p50_ms": 0.71, "p99_ms": 0.93},
    "seconds": 148.0,
    "seconds_by_step": {"distill": 104.0, "evaluate": 14.0, "export": 21.0, "bench": 9.0},
}
PLACE = (0.0, 0.0, 8.0, 8.0)
PREDICTIONS = [
    FileAnswer("photos/1.jpg", Found(labels=[Label("dress", 0.93)])),
    FileAnswer("photos/2.jpg", Found(shares={"nucleus": 0.12, "other": 0.0})),
    FileAnswer(
        "photos/3.jpg",
        Found(boxes=[Detection(name, 0.9, PLACE) for name in ("RBC", "RBC", "WBC")]),
    ),
    FileAnswer("photos/4.jpg", Found(boxes=[])),
    FileAnswer("photos/5.jpg", error="cannot be read as an image: truncated"),
]
VIDEO: dict[str, Any] = {
    "source": "rtsp://camera/stream", "live": True, "answers": "predictions/stream.jsonl",
    "frames": 900, "errors": 1, "dropped": 12, "damaged": 2, "reconnects": 1, "seconds": 36.2,
    "frames_per_s": 24.9, "video": "predictions/stream-annotated.mp4", "codec": "H.264",
    "stages": {
        stage: {"mean": ms, "p50": ms, "p99": 2 * ms}
        for stage, ms in (("decode", 6.2), ("preprocess", 1.1), ("infer", 14.5))
    },
}  # fmt: skip
PIPELINE: dict[str, Any] = {
    "model": f"{RUN}/export/shop.fp32.onnx", "task": "classify", "runtime": "ONNX Runtime 1.32",
    "images": 512, "seconds": 5.0, "frames_per_s": 102.4, "infer_frames_per_s": 219.3,
    "stages": {
        stage: {"mean": ms, "p50": ms, "p99": 2 * ms}
        for stage, ms in (
            ("decode", 3.9), ("preprocess", 1.1), ("infer", 4.56), ("postprocess", 0.02)
        )
    },
}  # fmt: skip
FEATURES_FILE: dict[str, Any] = {
    "features": "features.npz", "images": 12500, "width": 512, "neighbors": "features.png",
    "skipped": [["photos/9.jpg", "truncated"]],
}  # fmt: skip


def _measurement(model: str, precision: str, ms: float, *, noisy: bool) -> dict[str, Any]:
    times = {"mean": ms, "min": ms, "p50": ms, "p90": ms, "p95": ms, "p99": 1.3 * ms, "max": 2 * ms}
    proof = {
        "images": 16, "source": "images", "reference": "onnxruntime", "bound": precision,
        "most_relative_error": 0.02, "least_cosine": 0.99, "relative_error": 0.004,
        "cosine": 0.9996, "top1": 1.0, "passed": True,
    }  # fmt: skip
    return {
        "case": f"{model} ort-cpu b1", "model": model, "runner": "ort-cpu", "batch": 1,
        "runner_version": "1.32", "backend": "CPU", "precision": precision, "threads": 2,
        "copies": "in", "inputs": [], "throughput_ips": 1000 / ms, "first_inference_ms": 9.1,
        "load_ms": 20.0, "build_ms": None, "host_memory_mb": None, "engine_mb": None,
        "latency_ms": {**times, "count": 900, "std": 0.1, "mean_ci95": [ms, ms]},
        "warmup": {"runs": 50, "seconds": 0.4, "stable": True}, "measured_s": 5.0,
        "rounds_p50_ms": [ms, ms], "noise": {"spread": 0.2, "drift": 0.1, "noisy": noisy},
        "verification": proof, "warnings": ["p99 of 900 runs is hardly more"] if noisy else [],
    }  # fmt: skip


MODELS = {"shop.fp32.onnx": ("fp32", 4.56), "shop.int8-cpu.onnx": ("int8", 1.9)}
FILES = {"shop.int8-cpu.onnx": "shop.int8-cpu.failed-verification.onnx"}
SESSION: dict[str, Any] = {
    "target": "cpu",
    "created": "2026-01-05T10:00:00",
    "tool_version": "0.1.0",
    "settings": {"batches": [1], "threads": [2]},
    "environment": {"cpu": "AMD EPYC", "usable_cores": 2},
    "models": [
        {
            "label": name, "path": FILES.get(name, name), "sha256": "0" * 64, "size_mb": 2.8,
            "precision": precision,
        }
        for name, (precision, _) in MODELS.items()
    ],
    "measurements": [
        _measurement(name, precision, ms, noisy=precision == "int8")
        for name, (precision, ms) in MODELS.items()
    ],
    "warnings": ["CPU governor is 'powersave': clocks may be low"],
    "refusals": [{"name": "tensorrt", "reason": "this machine has no NVIDIA GPU"}],
}  # fmt: skip
REFUSALS = [Refusal(name="nano", reason="nano@10.0.0.7 cannot be reached: timed out")]
RATIOS: list[dict[str, Any]] = [
    {
        "target": "cpu", "case": "shop.fp32.onnx ort-cpu b1 t2", "a_p50_ms": 4.56,
        "b_p50_ms": 3.1, "ratio": 0.68, "beyond_noise": True,
        "differs": ["ONNX Runtime version: 1.31 -> 1.32"],
    },
]  # fmt: skip


def comparison() -> Comparison:
    """One device with three files, and one file without times."""
    on = {"metric": "top1", "split": "test", "images": 372, "fingerprint": "f"}
    here = Circumstances(device="AMD EPYC, 2 cores", batch=1, copies="in", **on)  # type: ignore[arg-type]
    files = (
        ("shop.fp32.onnx", "fp32", 71.2, 4.56, True),
        ("shop.fp16.onnx", "fp16", 71.2, 4.71, False),
        ("shop.int8-cpu.onnx", "int8", 71.0, 1.9, True),
    )
    rows = [
        Row(
            run=RUN, file=name, runner="ort-cpu", precision=precision, exported=precision,
            sha256="0" * 64, size_mb=2.8, score=score, scored_by="compare in ONNX Runtime",
            cosine=0.9991, p50_ms=ms, p99_ms=1.3 * ms, throughput_ips=1000 / ms, noisy=not front,
            measured="2026-01-05T10:00:00", front=front,
        )
        for name, precision, score, ms, front in files
    ]  # fmt: skip
    weights = Row(
        run=RUN, file="model.safetensors", runner="torch", precision="fp32", exported="fp32",
        sha256="1" * 64, size_mb=11.2, score=71.2, scored_by="evaluate in PyTorch",
    )  # fmt: skip
    untimed = Group(Circumstances(**on), [weights])  # type: ignore[arg-type]
    return Comparison([RUN], 1.0, [Group(here, rows), untimed], ["an INT8 file is slower"], [])
