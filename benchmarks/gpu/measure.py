"""The scale of the measurements, and how a step is timed."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hgkd_edge.engine.graph import Capturing, CudaGraphs, Outputs, Work

__all__ = ["DRY", "FULL", "NETWORKS", "EagerGraphs", "Scale", "graphs", "milliseconds", "peak"]

NETWORKS = ("resnet50", "resnet18", "mobilenetv3_large_100", "efficientnet_b0", "convnext_tiny")


@dataclass(frozen=True)
class Scale:
    """The scale of the measurements.

    Attributes:
        device: `cuda`; `cpu` for a dry run, which only shows that the scripts work.
        size: Side of the images in pixels.
        batch: Images in a batch.
        rounds: Number of timed repetitions of a step.
        batches: Batches of a training.
        photos: Images of the end-to-end run.
        teacher: The Transformer.
        networks: Networks whose encoders are measured.
        students: Students whose updates are measured; the first one with the teacher too.
    """

    device: str
    size: int
    batch: int
    rounds: int
    batches: int
    photos: int
    teacher: str
    networks: tuple[str, ...]
    students: tuple[str, ...]


FULL = Scale("cuda", 224, 256, 8, 6, 1536, "vit_base_patch16_224", NETWORKS, NETWORKS)
DRY = Scale(
    "cpu", 64, 2, 1, 3, 16, "vit_tiny_patch16_224", ("resnet18", "convnext_atto"), ("resnet18",)
)


class EagerGraphs:
    """In a dry run: replaces a CUDA graph and runs the pass directly."""

    def warm_up(self, work: Work, inputs: Any) -> Outputs:
        return work(inputs)

    def capture(self, work: Work, inputs: Any) -> Callable[[], Outputs]:
        return lambda: work(inputs)


def graphs(scale: Scale) -> Callable[[], Capturing]:
    """Creates the object that records a pass."""
    return CudaGraphs if scale.device == "cuda" else EagerGraphs


def milliseconds(step: Callable[[], Any], scale: Scale) -> float:
    """Median of the rounds after three warm-up rounds, in which a graph is recorded too."""
    taken = []
    for _ in range(scale.rounds + 3):
        begin = _now(scale)
        step()
        taken.append(1e3 * (_now(scale) - begin))
    return round(statistics.median(taken[3:]), 3)


def peak(scale: Scale, *, reset: bool = False) -> float:
    """Peak tensor memory since the last reset, MiB; 0 on a CPU."""
    if scale.device != "cuda":
        return 0.0
    if reset:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return round(torch.cuda.max_memory_allocated() / 2**20)


def _now(scale: Scale) -> float:
    if scale.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
