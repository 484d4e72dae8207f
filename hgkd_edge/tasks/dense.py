"""Shared code of segmentation and detection: views of images and labels, sample images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hgkd_edge.data.augment import normalize
from hgkd_edge.data.sources import ImageSource
from hgkd_edge.data.zoom import Zoom, jitter, random_zoom
from hgkd_edge.engine import Draws
from hgkd_edge.models.backbone import BackboneSpec, fill_features
from hgkd_edge.tasks.base import ModelCard
from hgkd_edge.tasks.config import FinetuneConfig, ViewConfig
from hgkd_edge.tasks.pictures import save_picture

__all__ = ["Extremes", "PyramidTask", "WithLoss", "labeled_share", "random_views", "to_photo"]

SHOWN = 4  # number of best and worst images to draw
T = TypeVar("T")


class PyramidTask:
    """Shared methods for a network that has its backbone in `backbone.features`."""

    def fill(self, network: nn.Module, state: dict[str, Tensor]) -> None:
        """Load a backbone's weights, named as in the plain timm model, into the network."""
        fill_features(network.get_submodule("backbone.features"), state)

    def view(self, images: Tensor, card: ModelCard) -> Tensor:
        """The unchanged canvas, which has the network's input size: uint8 -> float [B, 3, H, W]."""
        return normalize(images.float() / 255, card.backbone.mean, card.backbone.std)


class WithLoss(nn.Module):
    """A network with its loss: the module that the engine trains.

    Args:
        network: The network, with its backbone's weights in `backbone.features`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # The layers above timm's layer-wise learning rate decay: these train at the full rate.
        new = ("backbone.pyramid", "backbone.coarser", "head")
        self.pretrained_cfg = {"classifier": tuple(f"network.{part}" for part in new)}


def labeled_share(splits: dict[str, ImageSource], config: FinetuneConfig) -> dict[str, ImageSource]:
    """The splits, with only the share of training images that `config` asks for."""
    if config.label_share < 1:
        source = splits["train"]
        generator = torch.Generator().manual_seed(config.seed)
        order = torch.randperm(len(source), generator=generator)
        kept = order[: max(1, round(len(source) * config.label_share))]
        splits["train"] = source.subset(kept.sort().values)
    return splits


def random_views(
    images: Tensor, draws: Draws, spec: BackboneSpec, options: ViewConfig, *, flip: bool
) -> tuple[Tensor, Zoom]:
    """Training views float [B, 3, H, W], normalized, of canvases uint8; and their geometry."""
    numbers = draws.uniform(len(images), 7)  # [B, 7]
    zoom = random_zoom(
        numbers[:, :5], zoom=options.zoom, flip=flip, vertical_flip=options.vertical_flip
    )
    views = jitter(zoom.images(images), numbers[:, 5:], strength=options.color)
    return normalize(views, spec.mean, spec.std), zoom


def to_photo(image: Tensor) -> Image.Image:
    """One canvas uint8 [3, H, W] as a PIL image."""
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))


class Extremes(Generic[T]):
    """The best and worst images of a split, and the data to draw them."""

    def __init__(self) -> None:
        self.best: list[tuple[float, int, T]] = []
        self.worst: list[tuple[float, int, T]] = []
        self.count = 0

    def add(self, score: float, item: T) -> None:
        """Add an image with its score; higher is better."""
        entry = (score, self.count, item)  # the count breaks ties, so items are not compared
        self.count += 1
        self.best = sorted([*self.best, entry], key=_descending)[:SHOWN]
        self.worst = sorted([*self.worst, entry])[:SHOWN]

    def draw(self, draw: Callable[[T], Image.Image], folder: Path, task: str) -> list[str]:
        """Draw the images as `<task>-best-1.png`, ...; returns the file names."""
        return [
            str(save_picture(draw(item), folder / f"{task}-{kind}-{rank}.png"))
            for kind, entries in (("best", self.best), ("worst", self.worst))
            for rank, (_, _, item) in enumerate(entries, start=1)
        ]


def _descending(entry: tuple[float, int, T]) -> tuple[float, int]:
    return -entry[0], entry[1]
