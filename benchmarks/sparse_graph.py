"""What a GPU could do without the host: a training step of the encoder, eager and as a CUDA graph.

    python -m benchmarks.sparse_graph [--models resnet18:256 resnet50:128]

Needs an NVIDIA GPU. Dense (channels-last) and tiles, bf16, forward and backward. "indices kept"
makes the indices of the mask once, not at every step; the graph is of that, and its replay has no
Python and no launching of single kernels in it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor

from benchmarks.sparse_speed import random_visible
from hgkd_edge.sparse import sparsify
from hgkd_edge.sparse.features import feature_list
from hgkd_edge.sparse.visible import Visible

Step = Callable[[], None]


def steps(name: str, batch: int, size: int, ratio: float) -> dict[str, Step]:
    """Training steps of one network, on whole images and on tiles."""
    network = timm.create_model(name, features_only=True).cuda().train()
    encoder = sparsify(network, check=False)
    images = torch.randn(batch, 3, size, size, device="cuda")
    images = images.to(memory_format=torch.channels_last)
    visible = random_visible(batch, size // encoder.patch, ratio).cuda()
    sites = Visible(visible, encoder.patch)

    def step(forward: Callable[[], list[Tensor]]) -> Step:
        gradients: list[Tensor] = []

        def run() -> None:
            network.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                maps = forward()
            gradients.extend(torch.randn_like(m) for m in maps[len(gradients) :])
            torch.autograd.backward(maps, gradients)

        return run

    return {
        "dense": step(lambda: feature_list(network(images))),
        "tiles": step(lambda: encoder(images, visible)),
        "tiles, indices kept": step(lambda: encoder._on_sites(images, sites)),
    }


def graph(step: Step) -> Step:
    """The same step, captured after a warm-up on a stream of its own, as torch asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        step()
    return captured.replay


def milliseconds(step: Step, rounds: int) -> float:
    """Median over `rounds`, after two rounds of warm-up."""
    taken = []
    for _ in range(rounds + 2):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        step()
        torch.cuda.synchronize()
        taken.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(taken[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet18:256", "resnet50:128"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--ratio", type=float, default=0.6, help="share masked")
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    for spec in arguments.models:
        name, batch = spec.split(":")
        row = {}
        for label, step in steps(name, int(batch), arguments.size, arguments.ratio).items():
            row[label] = milliseconds(step, arguments.rounds)
            if label != "tiles":  # finding out what is visible waits for the host
                row[f"{label}, graph"] = milliseconds(graph(step), arguments.rounds)
        figures = ", ".join(f"{label} {ms:.1f}" for label, ms in row.items())
        print(f"{name} batch {batch}, {arguments.ratio:.0%} masked, ms: {figures}", flush=True)


if __name__ == "__main__":
    main()
