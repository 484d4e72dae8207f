"""The masked reference against a third implementation, written out by hand for one network."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from hgkd_edge.sparse import sparsify
from tests.sparse.helpers import gap, network, random_visible


def naive_batch_norm(bn: nn.BatchNorm2d, x: Tensor, sites: Tensor) -> Tensor:
    """Train-mode BatchNorm whose statistics are taken over the visible sites, one by one."""
    values = x.permute(0, 2, 3, 1)[sites[:, 0]]  # [visible sites, C]
    mean, var = values.mean(0), values.var(0, unbiased=False)
    with torch.no_grad():
        bn.running_mean.lerp_(mean, bn.momentum)
        bn.running_var.lerp_(values.var(0, unbiased=True), bn.momentum)
    scale = bn.weight / (var + bn.eps).sqrt()
    out = (x - mean[:, None, None]) * scale[:, None, None] + bn.bias[:, None, None]
    return out * sites


class NaiveResNet18:
    """ResNet-18 on visible sites: multiply by the mask after whatever could fill a masked site."""

    def __init__(self, net: nn.Module, visible: Tensor) -> None:
        self.net, self.visible = net, visible

    def sites(self, x: Tensor) -> Tensor:
        t = x.shape[-1] // self.visible.shape[-1]
        return self.visible.repeat_interleave(t, 1).repeat_interleave(t, 2)[:, None]

    def conv_bn(self, conv: nn.Conv2d, bn: nn.BatchNorm2d, x: Tensor) -> Tensor:
        x = conv(x)
        return naive_batch_norm(bn, x * self.sites(x), self.sites(x))

    def block(self, b: nn.Module, x: Tensor) -> Tensor:
        short = x if b.downsample is None else self.conv_bn(b.downsample[0], b.downsample[1], x)
        x = self.conv_bn(b.conv1, b.bn1, x).relu()
        return (self.conv_bn(b.conv2, b.bn2, x) + short).relu()

    def __call__(self, images: Tensor) -> list[Tensor]:
        x = self.conv_bn(self.net.conv1, self.net.bn1, images * self.sites(images)).relu()
        maps = [x]
        x = self.net.maxpool(x)
        x = x * self.sites(x)
        for layer in (self.net.layer1, self.net.layer2, self.net.layer3, self.net.layer4):
            for b in layer:
                x = self.block(b, x)
            maps.append(x)
        return maps


def test_masked_backend_equals_a_hand_written_resnet18():
    model = network("resnet18", torch.float64)
    by_hand, encoder = copy.deepcopy(model), sparsify(model, backend="masked")
    images, visible = torch.rand(2, 3, 96, 64, dtype=torch.float64), random_visible(2, 3, 2)

    expected = NaiveResNet18(by_hand, visible)(images)
    maps = encoder(images, visible)
    sum(m.square().mean() for m in expected).backward()
    sum(m.square().mean() for m in maps).backward()

    for a, b in zip(maps, expected, strict=True):
        assert gap(a, b) < 1e-10
    for a, b in zip(encoder.parameters(), by_hand.parameters(), strict=True):
        assert gap(a.grad, b.grad) < 1e-8
    for a, b in zip(encoder.buffers(), by_hand.buffers(), strict=True):
        if a.is_floating_point():
            assert gap(a, b) < 1e-10
