"""The spconv backend on a GPU: agreement with tiles, forward and backward, and speed.

    pip install "hgkd-edge[spconv]"          # CUDA build of spconv
    python -m benchmarks.spconv_cuda [--model resnet50] [--batch 256] [--json]

Needs an NVIDIA GPU. Prints the largest relative difference of maps and of parameter gradients
between the two backends, then milliseconds of a bf16 training step of dense, tiles and spconv.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.sparse_speed import Step, measure, random_visible
from hgkd_edge.sparse import sparsify


def agreement(model: nn.Module, images: Tensor, visible: Tensor) -> dict[str, float]:
    """Largest relative difference of maps and parameter gradients, float32."""
    results = []
    for backend in ("tiles", "spconv"):
        encoder = sparsify(copy.deepcopy(model), backend)
        maps = encoder(images, visible)
        sum(m.square().mean() for m in maps).backward()
        results.append((maps, [p.grad for p in encoder.parameters()]))
    return {
        what: max(
            float((a - b).detach().norm() / b.detach().norm().clamp_min(1e-12))
            for a, b in zip(results[0][place], results[1][place], strict=True)
        )
        for place, what in enumerate(("maps", "gradients"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--ratio", type=float, default=0.6)
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: no CUDA device\nhint: the CPU part is tests/sparse/test_spconv.py")

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    model = timm.create_model(a.model, features_only=True).cuda().train()
    features: Any = model.feature_info
    side = 224 // max(features.reduction())
    images = torch.randn(a.batch, 3, 224, 224, device="cuda")
    visible = random_visible(a.batch, side, a.ratio).cuda()
    result: dict[str, object] = {
        "gpu": torch.cuda.get_device_name(), "model": a.model, "batch": a.batch,
        "difference": agreement(model, images[:8], visible[:8]),
    }  # fmt: skip

    dense = copy.deepcopy(model).to(memory_format=torch.channels_last)
    tiles = sparsify(copy.deepcopy(model), "tiles")
    sparse = sparsify(copy.deepcopy(model), "spconv")
    last = images.to(memory_format=torch.channels_last)
    steps: dict[str, Step] = {
        "dense_cl": lambda: dense(last),
        "tiles": lambda: tiles(last, visible),
        "spconv": lambda: sparse(last, visible),
    }
    taken = measure(steps, "bf16", 20, "cuda")
    result["ms"] = {key: round(statistics.median(v), 1) for key, v in taken.items()}
    print(json.dumps(result) if a.json else result)


if __name__ == "__main__":
    main()
