"""SyncBatchNorm on visible sites.

SyncBatchNorm's forward passes the input to a custom autograd function, below the level at which
`SiteTensor` works. So modules of these exact classes change class while they are inside an encoder.
Parameters, buffers and names are unchanged.
"""

from __future__ import annotations

from timm.layers import SyncBatchNormAct
from torch import Tensor, nn

from hgkd_edge.sparse.sites import SiteTensor


class SiteSyncBatchNorm(nn.SyncBatchNorm):
    """SyncBatchNorm with statistics over visible sites, across processes."""

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, SiteTensor):
            return x.engine.over_sites(x, super().forward)
        return super().forward(x)


class SiteSyncBatchNormAct(SyncBatchNormAct, SiteSyncBatchNorm):
    """timm's SyncBatchNorm with activation: its forward calls `SyncBatchNorm`'s."""


_SITE_CLASS: dict[type[nn.Module], type[nn.Module]] = {
    nn.SyncBatchNorm: SiteSyncBatchNorm,
    SyncBatchNormAct: SiteSyncBatchNormAct,
}


def adapt(encoder: nn.Module) -> None:
    """Make SyncBatchNorm modules support visible sites (they may be inserted at any time)."""
    _swap(encoder, _SITE_CLASS)


def restore(encoder: nn.Module) -> None:
    """Restore the modules' original classes."""
    _swap(encoder, {site: plain for plain, site in _SITE_CLASS.items()})


def _swap(encoder: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> None:
    for module in encoder.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]
