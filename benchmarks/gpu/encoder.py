"""Times a training step of the bare encoder, and its gathers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.measure import Scale, graphs, milliseconds, peak
from benchmarks.sparse_speed import random_visible
from hgkd_edge.engine.graph import GraphedPass, Work
from hgkd_edge.models.backbone import create_features
from hgkd_edge.sparse import sparsify
from hgkd_edge.sparse.features import feature_list
from hgkd_edge.sparse.gather import fold_window, gather_window
from hgkd_edge.sparse.visible import Visible, Window

__all__ = ["encoder_rows", "gather_rows", "one_pass"]

TILES = ((64, 16), (64, 8), (128, 4), (256, 2), (512, 1))  # channels and tile side, ResNet-18's


def encoder_rows(name: str, scale: Scale, kinds: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Forward and backward pass of one network's maps from stride 16 on, bf16, as a recipe needs.

    Args:
        name: timm model.
        scale: Measurement scale.
        kinds: Some of `dense` (whole images, weights and images channels-last) and `tiles`.
    """
    images, visible = _inputs(scale)
    for kind in kinds:
        for mode in ("eager", "graph"):
            peak(scale, reset=True)
            ms = _measure(name, kind, mode, images, visible, scale)
            yield {"model": name, "batch": scale.batch, "kind": kind, "mode": mode, "ms": ms,
                   "peak_MiB": peak(scale)}  # fmt: skip


def one_pass(name: str, scale: Scale) -> None:
    """One forward and backward pass on tiles: it compiles the kernel of every layer."""
    images, visible = _inputs(scale)
    network = create_features(name, min_stride=16).to(scale.device).train()
    _work(sparsify(network, check=False), scale)((images, visible, int(visible[0].sum())))


def _inputs(scale: Scale) -> tuple[Tensor, Tensor]:
    """Channels-last images and a mask of 60 %."""
    images = torch.randn(scale.batch, 3, scale.size, scale.size, device=scale.device)
    visible = random_visible(scale.batch, scale.size // 32, 0.6).to(scale.device)
    return images.to(memory_format=torch.channels_last), visible


def _measure(
    name: str, kind: str, mode: str, images: Tensor, visible: Tensor, scale: Scale
) -> float:
    """Milliseconds per step; temporary tensors are freed when it returns."""
    network = create_features(name, min_stride=16).to(scale.device).train()
    inputs: tuple[Any, ...] = (images,)
    if kind == "dense":
        network = network.to(memory_format=torch.channels_last)
        work = _work(lambda images: feature_list(network(images)), scale)
    else:
        work = _work(sparsify(network, check=False), scale)
        inputs = (images, visible, int(visible[0].sum()))
    return milliseconds(_step(network, work, inputs, scale, graph=mode == "graph"), scale)


def _work(forward: Callable[..., list[Tensor]], scale: Scale) -> Work:
    """Forward and backward pass with fixed gradients of the maps."""
    gradients: list[Tensor] = []

    def work(inputs: Any) -> dict[str, Tensor]:
        with torch.autocast(scale.device, torch.bfloat16):
            maps = forward(*inputs)
        gradients.extend(torch.randn_like(m) for m in maps[len(gradients) :])
        torch.autograd.backward(maps, gradients)
        return {}

    return work


def _step(
    network: nn.Module, work: Work, inputs: Any, scale: Scale, *, graph: bool
) -> Callable[[], Any]:
    if graph:
        recorded = GraphedPass(work, network, graphs(scale))

        def replay() -> None:
            if not recorded.holds_gradients:
                network.zero_grad(set_to_none=True)
            recorded(inputs, adds=False)
            if recorded.failed:
                raise RuntimeError("the pass could not be recorded")

        return replay

    def eager() -> None:
        network.zero_grad(set_to_none=True)
        work(inputs)

    return eager


def gather_rows(scale: Scale) -> Iterator[dict[str, Any]]:
    """The window of a 3 x 3 convolution around every tile, and its backward, bf16."""
    visible = random_visible(scale.batch, scale.size // 32, 0.6).to(scale.device)
    sites = Visible(visible, 32, int(visible[0].sum()))
    for channels, t in TILES:
        tiles = torch.randn(sites.n, channels, t, t, device=scale.device, dtype=torch.bfloat16)
        tiles = tiles.contiguous(memory_format=torch.channels_last)
        window = Window(1, t + 2)
        near = gather_window(tiles, sites, t, window, window, keep=True).clone()
        forth = milliseconds(lambda: gather_window(tiles, sites, t, window, window), scale)  # noqa: B023
        back = milliseconds(lambda: fold_window(near, sites, t, window, window), scale)  # noqa: B023
        moved = (tiles.numel() + near.numel()) * 2  # bytes read and written, one way
        yield {"channels": channels, "tile": t, "gather_ms": forth, "fold_ms": back,
               "gather_TB_s": round(moved / max(forth, 1e-6) / 1e9, 2)}  # fmt: skip
