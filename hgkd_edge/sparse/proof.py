"""The check that `sparsify` runs before it returns an encoder.

timm has hundreds of networks, with arbitrary `forward` methods. The check passes a small random
input through a copy of the network. An operation without a rule is refused, with the path of its
module. An operation with a rule must agree with the plain network.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hgkd_edge.errors import ConversionError
from hgkd_edge.sparse.features import plain_maps

if TYPE_CHECKING:
    from hgkd_edge.sparse.encoder import SparseEncoder

TOLERANCE = 5e-3  # relative; rounding in an untrained float32 network stays well below


class _DisagreementError(ConversionError):
    """Two results differ by more than rounding error."""


def prove(encoder: SparseEncoder, masked: SparseEncoder) -> None:
    """Compare an encoder with the plain network and with the masked reference.

    Args:
        encoder: The encoder to check; its state and the random state are not changed.
        masked: A masked encoder on a copy of the network; the check modifies it.

    Raises:
        ConversionError: Results disagree, or an operation has no rule; the message names the
        module.
    """
    ours = copy.deepcopy(encoder)
    try:
        _prove_in(torch.float32, ours, masked)
    except _DisagreementError:
        if encoder.backend == "spconv":  # does not support float64
            raise
        # An untrained network can amplify rounding: only float64 distinguishes this from a bug.
        _prove_precisely(ours, masked)


def _prove_precisely(ours: SparseEncoder, masked: SparseEncoder) -> None:
    """Compare in float64; if that is not enough, settle BatchNorm's statistics first."""
    try:
        _prove_in(torch.float64, ours, masked)
    except _DisagreementError:
        _settle_batchnorm(masked.network, patch=ours.patch)
        ours.network.load_state_dict(masked.network.state_dict())
        _prove_in(torch.float64, ours, masked)


@torch.no_grad()
def _settle_batchnorm(network: nn.Module, *, patch: int) -> None:
    """Set BatchNorm's running statistics to those of the check's images, in place."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    first = next(network.parameters())
    with torch.random.fork_rng(devices=[first.device] if first.device.type == "cuda" else []):
        network.train()(_images(patch, first.device, first.dtype))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _prove_in(dtype: torch.dtype, ours: SparseEncoder, masked: SparseEncoder) -> None:
    ours, masked = ours.to(dtype), masked.to(dtype)
    plain, p = masked.network, ours.patch
    device = next(plain.parameters()).device
    # spconv has no backward pass on a CPU, so only its forward pass is checked.
    backward = ours.backend != "spconv" or device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)  # stochastic depth
        images = _images(p, device, dtype)
        everything = torch.ones(2, 2, 3, dtype=torch.bool, device=device)
        some = torch.tensor([[[1, 0, 1], [0, 1, 1]], [[0, 0, 1], [1, 1, 0]]], device=device).bool()
        with torch.set_grad_enabled(backward), torch.autocast(device.type, enabled=False):
            _against_plain(ours.eval(), plain.eval(), images, everything)
            with torch.no_grad():
                _same(_run(ours, images, some), _run(masked, images, some), "the masked reference")
            _run(ours.train(), images, some)  # operations used only in training need rules too


def _images(patch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The check's input, the same at every call: [2, 3, 2 patches, 3 patches]."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 2 * patch, 3 * patch, generator=generator, dtype=dtype)
    return images.to(device)


def _against_plain(
    ours: SparseEncoder, plain: nn.Module, images: Tensor, everything: Tensor
) -> None:
    """Compare maps, strides and parameter gradients, everything visible, to the plain network."""
    try:
        expected = plain_maps(plain, images)
    except Exception as error:
        raise ConversionError(
            f"the network itself fails on images of {list(images.shape[2:])} px: {error}",
            hint="fixed-size networks (most Transformers) cannot be made sparse",
        ) from error
    for m, stride in zip(expected, ours.reductions, strict=True):
        if images.shape[2] != m.shape[2] * stride or images.shape[3] != m.shape[3] * stride:
            raise ConversionError(
                f"feature_info says stride {stride}, the map is {list(m.shape[2:])} for an image "
                f"of {list(images.shape[2:])}",
                hint="correct the reductions in feature_info, or choose other out_indices",
            )
    maps = _run(ours, images, everything)
    _same(maps, expected, "the plain network")
    if torch.is_grad_enabled():
        _same(_gradients(ours, maps), _gradients(plain, expected), "the plain network's gradients")


def _gradients(network: nn.Module, maps: list[Tensor]) -> list[Tensor]:
    """Gradient of the maps' weighted sum for all parameters, as one vector per parameter."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    weights = [torch.linspace(0.5, 1.5, m.numel(), device=m.device).view(m.shape) for m in maps]
    loss = sum((m * w).sum() for m, w in zip(maps, weights, strict=True))
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        return []
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return (
        [torch.cat([g.flatten() for g in grads if g is not None])]
        if any(g is not None for g in grads)
        else []
    )


def _same(ours: list[Tensor], expected: list[Tensor], what: str) -> None:
    for place, (a, b) in enumerate(zip(ours, expected, strict=True)):
        a, b = a.detach(), b.detach()
        if not torch.isfinite(b).all():
            continue  # untrained network overflowed: inconclusive; float64 may work
        worst = float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
        if not worst <= TOLERANCE:  # written so that NaN fails
            raise _DisagreementError(
                f"map {place} differs from {what} by {worst:.1e}, relatively",
                hint="an operation of the network has no exact form on visible sites; report it",
            )


def _run(encoder: SparseEncoder, images: Tensor, visible: Tensor) -> list[Tensor]:
    """Run one pass; a failure names the module where it happened."""
    with _tracing(encoder) as path:
        try:
            return encoder.on_sites(images, visible)
        except ConversionError as error:
            raise ConversionError(
                f"{_where(encoder, path)}: {error.message}", hint=error.hint
            ) from None
        except Exception as error:
            raise ConversionError(
                f"{_where(encoder, path)}: {type(error).__name__}: {error}",
                hint="this module has no form on visible sites only",
            ) from error


def _where(encoder: SparseEncoder, path: list[str]) -> str:
    if not path:
        return type(encoder.network).__name__
    return f"module '{path[-1]}' ({type(encoder.get_submodule(path[-1])).__name__})"


@contextlib.contextmanager
def _tracing(encoder: SparseEncoder) -> Iterator[list[str]]:
    """Names of the modules being run, outermost first, while the context is active."""
    path: list[str] = []
    names = {module: name for name, module in encoder.named_modules() if name}

    def enter(module: nn.Module, _: object) -> None:
        path.append(names[module])

    def leave(module: nn.Module, _: object, __: object) -> None:
        path.pop()

    handles = [m.register_forward_pre_hook(enter, prepend=True) for m in names]
    handles += [m.register_forward_hook(leave) for m in names]
    try:
        yield path
    finally:
        for handle in handles:
            handle.remove()
