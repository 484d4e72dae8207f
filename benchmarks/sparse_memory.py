"""Peak memory of a training step, dense and tiles, each in a separate process.

    python -m benchmarks.sparse_memory [--model resnet50] [--batch 16] [--ratio 0.6] [--json]

On a CPU, the peak is the high-water mark of the resident set during three steps, minus its size
before the first step (interpreter, libraries, weights, images). Gradients of the weights count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time

import psutil
import timm
import torch

from benchmarks.sparse_speed import random_visible
from hgkd_edge.sparse import sparsify


def peak_of(kind: str, name: str, batch: int, ratio: float) -> float:
    """MiB above the resident set at the start."""
    torch.set_num_threads(2)
    images = torch.randn(batch, 3, 224, 224)
    model = timm.create_model(name, features_only=True).train()
    if kind == "dense":
        forward = lambda: model(images)  # noqa: E731
    else:
        encoder = sparsify(model, kind, check=False)
        visible = random_visible(batch, 224 // encoder.patch, ratio)
        forward = lambda: encoder(images, visible)  # noqa: E731
    process, peak, running = psutil.Process(), [0], [True]

    def watch() -> None:
        while running:
            peak[0] = max(peak[0], process.memory_info().rss)
            time.sleep(0.002)

    before = process.memory_info().rss
    thread = threading.Thread(target=watch)
    thread.start()
    for _ in range(3):
        model.zero_grad(set_to_none=True)
        sum(m.mean() for m in forward()).backward()
    running.clear()
    thread.join()
    return (peak[0] - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--ratio", type=float, default=0.6)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=["dense", "masked", "tiles"], help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.only:
        print(peak_of(a.only, a.model, a.batch, a.ratio))
        return
    peaks = {}
    for kind in ("dense", "masked", "tiles"):
        command = [
            sys.executable, "-m", "benchmarks.sparse_memory", "--only", kind, "--model", a.model,
            "--batch", str(a.batch), "--ratio", str(a.ratio),
        ]  # fmt: skip
        out = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[kind] = round(float(out.stdout))
    share = round(peaks["tiles"] / peaks["dense"], 2)
    if a.json:
        print(json.dumps({"model": a.model, "batch": a.batch, "MiB": peaks, "share": share}))
    else:
        print(f"{a.model} batch {a.batch}: MiB {peaks}, tiles use {share} of dense")


if __name__ == "__main__":
    main()
