"""The spconv backend against tiles; spconv's CPU build computes the forward pass only."""

from __future__ import annotations

import copy

import pytest
import torch

from hgkd_edge.errors import ConversionError
from hgkd_edge.sparse import sparsify
from tests.sparse.helpers import WIDTHS, gap, network, random_visible

pytest.importorskip("spconv", reason="the [spconv] extra is not installed")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet18", {"channels": WIDTHS}),
        ("resnet26d", {"channels": WIDTHS, "stem_width": 16}),
        ("vgg11_bn", {"mlp_ratio": 0.01}),  # of the head, which a feature network does not have
    ],
)
def test_spconv_agrees_with_tiles(name, settings):
    model = network(name, **settings).eval()
    images, visible = torch.rand(2, 3, 64, 96), random_visible(2, 2, 3)

    with torch.no_grad():
        ours = sparsify(copy.deepcopy(model), backend="spconv")(images, visible)
        tiles = sparsify(model)(images, visible)

    for a, b in zip(ours, tiles, strict=True):
        assert gap(a, b) < 1e-4


def test_grouped_convolutions_are_refused_by_path():
    with pytest.raises(ConversionError, match=r"module 'layer1\.0\.conv2'.*groups=32"):
        sparsify(network("resnext50_32x4d"), backend="spconv")


def test_weights_convert_both_ways():
    from hgkd_edge.sparse.spconv import krsc

    weight = torch.rand(5, 3, 7, 7)

    assert krsc(weight).shape == (5, 7, 7, 3)
    assert torch.equal(krsc(weight).permute(0, 3, 1, 2), weight)


def test_spconvs_cpu_build_runs_on_one_thread_and_the_number_is_set_back():
    from hgkd_edge.sparse.spconv import _one_cpu_thread

    before, inside = torch.get_num_threads(), []
    torch.set_num_threads(2)

    try:
        for device in ("cpu", "cuda"):
            with _one_cpu_thread(torch.device(device)):
                inside.append(torch.get_num_threads())
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert inside == [1, 2]
