"""Compares dense, masked and tiles: a training step of the bare encoder.

    python -m benchmarks.sparse_speed [--models resnet50:8 resnet50:16:bf16] [--json]

Forward and backward pass through the public API, the three interleaved in one process. The measured
time includes building the indices and putting the maps back on the grid. Dense is the plain timm
network on the whole image; `dense_cl` is the same in channels-last memory format. The gradients of
the maps are random and prepared in advance, so no loss is measured.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor

from hgkd_edge.sparse import sparsify

DEFAULT = [
    "resnet50:8", "resnet50:16:bf16", "resnet18:16", "mobilenetv3_large_100:16",
    "efficientnet_b0:16", "convnext_tiny:8", "regnety_008:16",
]  # fmt: skip
Step = Callable[[], list[Tensor]]


def random_visible(batch: int, side: int, ratio: float) -> Tensor:
    """bool [batch, side, side] with the same number of visible patches in every image."""
    keep = round((1 - ratio) * side * side)
    order = torch.rand(batch, side * side).argsort(1)
    return (order < keep).view(batch, side, side)


def variants(name: str, batch: int, size: int, ratio: float, device: str) -> dict[str, Step]:
    """The forward passes to compare, each on a separate network with the same weights."""
    images = torch.randn(batch, 3, size, size, device=device)
    plain = timm.create_model(name, features_only=True).to(device).train()
    tiles = sparsify(copy.deepcopy(plain), "tiles")
    masked = sparsify(copy.deepcopy(plain), "masked")
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    images_last = images.to(memory_format=torch.channels_last)
    visible = random_visible(batch, size // tiles.patch, ratio).to(device)
    return {
        "dense": lambda: plain(images),
        "dense_cl": lambda: last(images_last),
        "masked": lambda: masked.on_sites(images, visible),
        "tiles": lambda: tiles.on_sites(images, visible),
    }


def measure(steps: dict[str, Step], dtype: str, rounds: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of each step, `rounds` times after two warm-up rounds, interleaved."""
    taken: dict[str, list[float]] = {key: [] for key in steps}
    grads: dict[str, list[Tensor]] = {}
    for turn in range(rounds + 2):
        for key, forward in steps.items():
            start = _now(device)
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
                maps = forward()
            if turn == 0:
                grads[key] = [_gradient(m) for m in maps]
            torch.autograd.backward(maps, grads[key])
            if turn >= 2:
                taken[key].append(1e3 * (_now(device) - start))
            del maps
    return taken


def _gradient(feature_map: Tensor) -> Tensor:
    """A random gradient in the memory format of the map itself, as a decoder would send it."""
    return torch.randn_like(feature_map)


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=DEFAULT, help="name:batch[:fp32|bf16]")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.6], help="share masked")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", action="store_true", help="one JSON object per line on stdout")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    for spec in arguments.models:
        name, batch, dtype = (spec.split(":") + ["8", "fp32"][len(spec.split(":")) - 1 :])[:3]
        for ratio in arguments.ratio:
            steps = variants(name, int(batch), arguments.size, ratio, arguments.device)
            taken = measure(steps, dtype, arguments.rounds, arguments.device)
            row: dict[str, object] = {
                "model": name, "batch": int(batch), "dtype": dtype, "ratio": ratio,
                "device": arguments.device, "torch": torch.__version__,
                "ms": {k: round(statistics.median(v), 1) for k, v in taken.items()},
                "fastest_ms": {k: round(min(v), 1) for k, v in taken.items()},
            }  # fmt: skip
            tiles = statistics.median(taken["tiles"])
            row["times_faster_than"] = {
                k: round(statistics.median(v) / tiles, 2) for k, v in taken.items() if k != "tiles"
            }
            print(json.dumps(row) if arguments.json else _line(row), flush=True)


def _line(row: dict[str, object]) -> str:
    return (
        f"{row['model']:24} batch {row['batch']:>3} {row['dtype']} {row['ratio']:.0%} masked  "
        f"ms {row['ms']}  tiles faster than {row['times_faster_than']}"
    )


if __name__ == "__main__":
    main()
