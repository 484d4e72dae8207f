"""What exporting gains on a CPU: latency of exported files compared with common alternatives.

    python -m benchmarks.export_latency [--models resnet50 ...] [--threads 2] [--json]

Batch size 1. All cases of a model are open in one process and measured in turn, and each round
gives a pair for every ratio. The process rests between two cases: the previous thread pool spins
for a while waiting for work. On few cores that alone doubles the time of the next case and makes
INT8 look unsteady. Weights are random, which does not affect the times; INT8 is calibrated on
bundled images.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from exporters import runtimes
from exporters.calibrate import calibrate
from exporters.onnx_export import export_onnx
from exporters.onnx_info import onnx_info, read_onnx
from exporters.openvino_export import export_openvino
from exporters.quantize import quantize_int8
from hgkd_edge.data.augment import IMAGENET_MEAN, IMAGENET_STD, center_view, normalize
from hgkd_edge.data.sources import open_splits
from hgkd_edge.recipe_sections import DataConfig

CALIBRATION_PHOTOS = 32
REST_S = 0.05  # until the other thread pools are idle
SETTLE_RUNS = 3
# (case, base): the ratio shown is time of base / time of case, over 1 is faster.
PAIRS = [
    ("ours, ort", "torch.onnx.export, ort"),
    ("int8, ort", "ours, ort"),
    ("ours, openvino", "ours, ort"),
    ("int8, openvino", "ours, openvino"),
    ("ours, ort", "torch.compile"),
    ("int8, ort", "torch.compile"),
    ("int8, openvino", "torch.compile"),
]


def photos(size: int) -> np.ndarray:
    """Bundled images as network input, f32[CALIBRATION_PHOTOS, 3, size, size]."""
    source = open_splits(DataConfig(source="bundled", image_size=size))["test"]
    chosen = source.images[torch.linspace(0, len(source) - 1, CALIBRATION_PHOTOS).long()]
    view = center_view(chosen, size=(size, size))
    return normalize(view, IMAGENET_MEAN, IMAGENET_STD).numpy()


def export_all(name: str, images: np.ndarray, folder: Path) -> tuple[torch.nn.Module, dict]:
    """The timm model, and its files by case."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    ours, plain, small = (folder / f"{kind}.onnx" for kind in ("ours", "plain", "int8"))
    export_onnx(model, ours, input_size=images.shape[1:])
    torch.onnx.export(model, (torch.from_numpy(images[:1]),), plain, verbose=False)
    quantize_int8(ours, small, calibration=calibrate(read_onnx(ours), images), flavor="cpu")
    export_openvino(ours, folder / "ours.xml")
    export_openvino(small, folder / "int8.xml")
    return model, {
        "ours, ort": ours,
        "torch.onnx.export, ort": plain,
        "int8, ort": small,
        "ours, openvino": folder / "ours.xml",
        "int8, openvino": folder / "int8.xml",
    }


def open_cases(
    model: torch.nn.Module, files: dict[str, Path], image: np.ndarray, threads: int
) -> dict[str, Callable[[], Any]]:
    """One complete inference per case: image in, numpy out."""
    info = onnx_info(files["ours, ort"])

    def opened(runner: str, source: Path | torch.nn.Module) -> Callable[[], Any]:
        described = info
        if isinstance(source, Path) and source.suffix == ".onnx":
            described = onnx_info(source)
        feeds = {described.inputs[0].name: image}
        shapes = {name: array.shape for name, array in feeds.items()}
        session = runtimes.open(source, runtime=runner, shapes=shapes, threads=threads, exact=False)
        return session.bind(feeds, "in")

    kinds = {".onnx": "ort-cpu", ".xml": "openvino"}
    cases = {name: opened(kinds[path.suffix], path) for name, path in files.items()}
    return {
        **cases,
        "torch": opened("torch", model),
        "torch.compile": opened("torch-compile", model),
    }


def measure(
    cases: dict[str, Callable[[], Any]], *, rounds: int, seconds: float
) -> dict[str, np.ndarray]:
    """Median ms of every case in every round, f64[rounds]."""
    medians: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            time.sleep(REST_S)
            for _ in range(SETTLE_RUNS):
                run()
            taken: list[float] = []
            while sum(taken) < seconds * 1000:
                start = time.perf_counter()
                run()
                taken.append(1000 * (time.perf_counter() - start))
            medians[name].append(float(np.median(taken)))
    return {name: np.array(values) for name, values in medians.items()}


def ratios(medians: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Speed-up over the base in each round: median and extremes."""
    found = {}
    for case, base in PAIRS:
        each = medians[base] / medians[case]
        found[f"{case} over {base}"] = {
            "median": round(float(np.median(each)), 3),
            "low": round(float(each.min()), 3),
            "high": round(float(each.max()), 3),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["resnet50"], help="timm names")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.3, help="per case and round")
    parser.add_argument("--json", action="store_true", help="one JSON object per line on stdout")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    images = photos(arguments.size)

    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            model, files = export_all(name, images, Path(folder))
            cases = open_cases(model, files, images[:1], arguments.threads)
            medians = measure(cases, rounds=arguments.rounds, seconds=arguments.seconds)
        row = {
            "model": name,
            "size": arguments.size,
            "threads": arguments.threads,
            "ms": {case: round(float(np.median(v)), 2) for case, v in medians.items()},
            "times_faster": ratios(medians),
        }
        print(json.dumps(row) if arguments.json else _lines(row), flush=True)


def _lines(row: dict[str, Any]) -> str:
    lines = [f"{row['model']}, {row['size']} px, batch 1, {row['threads']} threads"]
    lines += [f"  {ms:8.2f} ms  {case}" for case, ms in row["ms"].items()]
    lines += [
        f"  {ratio['median']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})  {pair}"
        for pair, ratio in row["times_faster"].items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
