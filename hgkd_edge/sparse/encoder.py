"""`sparsify` and `densify`: a timm feature network on visible patches only, and back.

No layer is replaced. The network's own modules run on `SiteTensor`s, so parameters are shared,
state-dict keys are timm's, and `densify` returns the original network.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hgkd_edge.errors import ConversionError
from hgkd_edge.sparse import layers, proof, sync, within_site  # noqa: F401  (rules register themselves)
from hgkd_edge.sparse.features import feature_list, plain_maps
from hgkd_edge.sparse.masked import MaskedEngine
from hgkd_edge.sparse.sites import Engine
from hgkd_edge.sparse.spconv import SpconvEngine
from hgkd_edge.sparse.strided import guard_strided
from hgkd_edge.sparse.tiles import TileEngine
from hgkd_edge.sparse.visible import Visible

BACKENDS: dict[str, Callable[[Visible], Engine]] = {
    "tiles": TileEngine,
    "masked": MaskedEngine,
    "spconv": SpconvEngine,
}


@contextlib.contextmanager
def _batchnorm_fault_named() -> Iterator[None]:
    """torch's error for a batch of one value per channel, with this project's wording."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConversionError(
            "BatchNorm in training cannot average over the one visible site of the batch",
            hint="use more visible patches or a larger batch, or call .eval()",
        ) from error


class SparseEncoder(nn.Module):
    """A timm feature network that computes only visible patches.

    Its submodules, parameters and buffers are the network's own, under the network's own names:
    `state_dict()` has the keys of `timm.create_model(..., features_only=True)`.

    Args:
        network: timm model made with `features_only=True`.
        backend: 'tiles', 'masked' or 'spconv'.

    Attributes:
        backend: The backend's name.
        patch: Side of a mask patch in pixels: the deepest stride.
        reductions: Stride of each output map.
        channels: Channels of each output map.
    """

    def __init__(self, network: nn.Module, backend: str) -> None:
        super().__init__()
        info: Any = network.feature_info
        self.backend = backend
        self.reductions = [int(r) for r in info.reduction()]
        self.channels = [int(c) for c in info.channels()]
        self.patch = max(self.reductions)
        self.training = network.training
        # Both objects share one set of registries: a module replaced in the encoder (for example by
        # SyncBatchNorm conversion) is replaced in the network too. The tuple keeps the network from
        # being registered as a child, which would prefix every name.
        self._network = (network,)
        guard_strided(network)
        self._modules = network._modules
        self._parameters = network._parameters
        self._buffers = network._buffers

    @property
    def network(self) -> nn.Module:
        """The plain timm network inside the encoder."""
        return self._network[0]

    def train(self, mode: bool = True) -> SparseEncoder:
        super().train(mode)
        self.network.training = mode
        return self

    @_batchnorm_fault_named()
    def forward(
        self,
        images: Tensor,
        visible: Tensor,
        per_image: int | None = None,
        *,
        each: Sequence[Callable[[Tensor], Tensor]] | None = None,
    ) -> list[Tensor]:
        """Encode the visible patches.

        Args:
            images: float `[B, 3, H, W]`; H and W are multiples of `patch`.
            visible: bool `[B, H / patch, W / patch]`, True = visible.
            per_image: Number of visible patches in every image, if it is the same and known. The
                result does not change, but on a GPU nothing waits for the device, so the pass can
                be captured as a CUDA graph.
            each: One module per map, run on visible sites only. A 1x1 convolution to fewer channels
                is cheaper this way than on the dense map.

        Returns:
            One map `[B, C_s, H / s, W / s]` per stride s of `reductions`, zero at masked sites;
            with `each`, the outputs of its modules.

        Raises:
            ConversionError: Shapes that do not fit, nothing visible, or an operation that cannot
                run on visible sites only.
        """
        self._check(images, visible)
        sites = Visible(visible, self.patch, per_image)
        if sites.n == visible.numel():  # everything visible: plain layers, without gathering
            return _apply(each, plain_maps(self.network, images))
        return self._on_sites(images, sites, each)

    @_batchnorm_fault_named()
    def on_sites(self, images: Tensor, visible: Tensor) -> list[Tensor]:
        """Like `forward`, but uses visible sites even if nothing is masked, to test that path."""
        self._check(images, visible)
        return self._on_sites(images, Visible(visible, self.patch))

    def _on_sites(
        self,
        images: Tensor,
        sites: Visible,
        each: Sequence[Callable[[Tensor], Tensor]] | None = None,
    ) -> list[Tensor]:
        sync.adapt(self)
        engine = BACKENDS[self.backend](sites)
        maps = feature_list(self.network(engine.enter(images)))
        maps = [m.permute(0, 3, 1, 2) if m.channels_last else m for m in maps]
        return [engine.leave(m) for m in _apply(each, maps)]

    def _check(self, images: Tensor, visible: Tensor) -> None:
        if images.dim() != 4 or any(side % self.patch for side in images.shape[2:]):
            raise ConversionError(
                f"images of shape {list(images.shape)} do not divide into patches of "
                f"{self.patch} px",
                hint=f"resize or crop them to a multiple of {self.patch}",
            )
        grid = (images.shape[0], images.shape[2] // self.patch, images.shape[3] // self.patch)
        if tuple(visible.shape) != grid:
            raise ConversionError(
                f"visible has shape {list(visible.shape)}, images need {list(grid)}",
                hint=f"one entry per patch of {self.patch} px",
            )

    def extra_repr(self) -> str:
        return f"backend={self.backend!r}, patch={self.patch}"


def _apply(functions: Sequence[Callable[[Tensor], Tensor]] | None, maps: list[Any]) -> list[Any]:
    """One function per map; identity if no modules are given."""
    if functions is None:
        return maps
    return [function(m) for function, m in zip(functions, maps, strict=True)]


@torch.inference_mode(False)  # the proof needs gradients, even in inference mode
def sparsify(model: nn.Module, backend: str = "tiles", *, check: bool = True) -> SparseEncoder:
    """Make a timm feature network compute visible patches only.

    Args:
        model: timm model made with `features_only=True`; its parameters are shared, not copied.
        backend: 'tiles' (fast), 'masked' (reference) or 'spconv'.
        check: Prove the conversion on a copy with a small random input (well under a second for a
            ResNet-50). The encoder must equal the plain network with everything visible, forward
            and backward, and the masked reference with a random mask.

    Returns:
        `encoder(images, visible) -> list of maps`.

    Raises:
        ConversionError: An unknown backend, a model that is not a feature network, or a module
            that cannot run on visible sites only, named by its path.

    Examples:
        >>> import timm, torch
        >>> model = timm.create_model("resnet18", features_only=True)
        >>> encoder = sparsify(model)
        >>> visible = torch.rand(2, 2, 3) < 0.4
        >>> [list(m.shape) for m in encoder(torch.rand(2, 3, 64, 96), visible)][-1]
        [2, 512, 2, 3]
    """
    if backend not in BACKENDS:
        raise ConversionError(
            f"unknown backend '{backend}'", hint=f"one of {', '.join(sorted(BACKENDS))}"
        )
    if not hasattr(getattr(model, "feature_info", None), "reduction"):
        raise ConversionError(
            f"{type(model).__name__} is not a feature network",
            hint="make it with timm.create_model(name, features_only=True)",
        )
    encoder = SparseEncoder(model, backend)
    if check:
        proof.prove(encoder, SparseEncoder(copy.deepcopy(model), "masked"))
    return encoder


def densify(encoder: SparseEncoder) -> nn.Module:
    """The plain timm network again, with the same parameters.

    Returns:
        The network given to `sparsify` (or its copy, for a copied encoder); its state
        dict loads with `timm.create_model(..., features_only=True)`, strictly.
    """
    sync.restore(encoder)
    return encoder.network
