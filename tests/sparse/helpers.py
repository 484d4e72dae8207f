"""Small helpers of the sparse tests: networks, masks, comparisons."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import timm
import torch
from timm.models.regnet import RegStage
from torch import Tensor, nn

from hgkd_edge.sparse import SparseEncoder, sparsify


def network(name: str, dtype: torch.dtype = torch.float32, **settings: object) -> nn.Module:
    """A feature network with weights that depend on nothing but its name."""
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=True, **settings).to(dtype)
    for parameter in model.parameters():  # zero-initialized gains would hide their branch
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


WIDTHS = (24, 32, 48, 64)


def narrow(name: str, dtype: torch.dtype = torch.float32, **settings: object) -> nn.Module:
    """A narrow ResNet, as `network` makes it: no rule of the engine depends on the width."""
    return network(name, dtype, channels=WIDTHS, **settings)


def shallow(model: nn.Module) -> nn.Module:
    """The same network without the blocks of a stage that equal the one before.

    Deeper ones say nothing else about the layers, take longer, and amplify rounding.
    """
    for stage in [m for m in model.modules() if isinstance(m, (nn.Sequential, RegStage))]:
        before = None
        for name, block in list(stage.named_children()):
            kind = type(block), [tuple(p.shape) for p in block.parameters()]
            if kind == before and kind[1] and type(block) is not nn.Sequential:
                delattr(stage, name)
            before = kind
    return model


KINKED = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh)


def smooth(model: nn.Module) -> nn.Module:
    """The same network with SiLU in the place of activations that have a kink."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, KINKED):
                setattr(module, name, nn.SiLU())
    return model


def patch_of(model: nn.Module) -> int:
    return int(max(model.feature_info.reduction()))


def random_visible(batch: int, h: int, w: int, share: float = 0.5, seed: int = 0) -> Tensor:
    """bool [B, h, w], at least one visible patch per image, numbers differ from image to image."""
    generator = torch.Generator().manual_seed(seed)
    visible = torch.rand(batch, h, w, generator=generator) < share
    visible[:, seed % h, seed % w] = True
    return visible


def pair(model: nn.Module, *, check: bool = True) -> tuple[SparseEncoder, SparseEncoder]:
    """The network on tiles, and a copy of it on the masked reference."""
    masked = sparsify(copy.deepcopy(model), backend="masked", check=check)
    return sparsify(model, check=check), masked


def gap(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest value of `b`."""
    assert a.shape == b.shape
    assert torch.isfinite(a).all()
    assert torch.isfinite(b).all()
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Norm of the difference of two lists of tensors, relative to the norm of `b`."""
    ours, theirs = (torch.cat([t.detach().double().flatten() for t in x]) for x in (a, b))
    return float((ours - theirs).norm() / theirs.norm())


def step(
    encoder: nn.Module, images: Tensor, visible: Tensor, *, autocast: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """Maps and the gradients (image first, then parameters) of a fixed random projection."""
    images = images.detach().clone().requires_grad_()
    encoder.zero_grad()
    torch.manual_seed(7)  # stochastic depth draws the same
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        maps = [m.to(images.dtype) for m in encoder(images, visible)]
    torch.manual_seed(8)
    loss = sum((m * torch.randn(m.shape, dtype=m.dtype)).sum() for m in maps)
    loss.backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in encoder.parameters()]
    return [m.detach() for m in maps], [images.grad, *grads]


def assert_same_step(
    one: nn.Module, two: nn.Module, images: Tensor, visible: Tensor, bound: float
) -> None:
    """Outputs, gradients and buffers of a training step agree within `bound`, relatively.

    A gradient that is zero in exact arithmetic (a bias before BatchNorm) is rounding noise; it is
    compared with the largest gradient of the network.
    """
    maps_one, grads_one = step(one, images, visible)
    maps_two, grads_two = step(two, images, visible)

    for a, b in zip(maps_one, maps_two, strict=True):
        assert gap(a, b) < bound
    largest = max(float(g.norm()) for g in grads_two)
    for a, b in zip(grads_one, grads_two, strict=True):
        assert float((a - b).norm()) < bound * max(float(b.norm()), 1e-3 * largest)
    for a, b in zip(one.buffers(), two.buffers(), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=bound, atol=bound)
