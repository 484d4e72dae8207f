"""Recomputes BatchNorm's running statistics after training on visible patches."""

from __future__ import annotations

import math

import torch
from torch import nn

from hgkd_edge.data.augment import center_view, normalize
from hgkd_edge.data.sources import ImageSource
from hgkd_edge.models.backbone import BackboneSpec

__all__ = ["recalibrate_batchnorm"]

BATCH = 128


@torch.no_grad()
def recalibrate_batchnorm(
    network: nn.Module, source: ImageSource, spec: BackboneSpec, *, batches: int = 8
) -> None:
    """Re-estimate BatchNorm's running statistics on whole training images.

    In training, the encoder saw visible patches surrounded by zeros. Whole images give other means
    and variances at the patches' edges. The weights are unchanged.

    Args:
        network: Takes images float [B, 3, H, W]; changed in place.
        source: Training images; the first `batches` x 128 of a fixed shuffle are used.
        spec: Image size and normalization.
        batches: Largest number of batches to average. They are of equal size, so that a few
            remaining images do not count as much as a whole batch.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    device = next(network.parameters()).device
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    network.eval()  # without stochastic depth and dropout, as it will be used
    for norm in norms:
        norm.train()
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))
    order = order[: batches * BATCH]
    for indices in order.tensor_split(math.ceil(len(order) / BATCH)):
        view = center_view(source.images[indices].to(device), size=spec.size)
        network(normalize(view, spec.mean, spec.std))
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
