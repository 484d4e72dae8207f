"""Convolution and pooling on tiles against dense layers on a zero-filled map, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hgkd_edge.sparse import choice, convolution
from hgkd_edge.sparse.gather import near_tiles, put_back
from hgkd_edge.sparse.shape import ConvShape
from hgkd_edge.sparse.tiles import TileEngine
from hgkd_edge.sparse.visible import Visible, Window
from tests.sparse.helpers import random_visible

METHODS = ["rows", "native", "grid", "direct"]  # direct is native where Triton does not run


def tiles_and_map(t: int, channels: int, seed: int = 0) -> tuple[Visible, Tensor, Tensor]:
    """Random tiles [n, C, t, t] and the same values on a dense map, zero where masked."""
    visible = Visible(random_visible(2, 2, 3, seed=seed), t)
    torch.manual_seed(seed)
    dense = torch.randn(2, channels, 2 * t, 3 * t, dtype=torch.float64) * visible.sites(t)
    return visible, TileEngine(visible).enter(dense).payload, dense


@pytest.fixture(params=METHODS)
def method(request, monkeypatch):
    """Force one kernel, whatever the table says."""
    monkeypatch.setattr(convolution, "choose", lambda *_: request.param)
    return request.param


def check_convolution(
    method: str, t: int, kernel: int, stride: int, dilation: int, groups: int, seed: int
) -> None:
    visible, tiles, dense = tiles_and_map(t, 4, seed)
    weight = torch.randn(8, 4 // groups, kernel, kernel, dtype=torch.float64, requires_grad=True)
    before = dilation * (kernel - 1) // 2
    shape = ConvShape(t, (kernel, kernel), (stride,) * 2, (before,) * 2, (dilation,) * 2, groups)
    tiles, dense = tiles.requires_grad_(), dense.requires_grad_()

    out = put_back(convolution.conv2d(tiles, weight, None, shape, visible), visible)
    expected = F.conv2d(dense, weight, None, stride, before, dilation, groups)
    expected = expected * visible.sites(t // stride)

    cotangent = torch.randn_like(expected)
    ours = torch.autograd.grad(out, (tiles, weight), cotangent)
    theirs = torch.autograd.grad(expected, (dense, weight), cotangent)
    assert torch.allclose(out, expected, atol=1e-10)
    assert torch.allclose(put_back(ours[0], visible), theirs[0] * visible.sites(t), atol=1e-10)
    assert torch.allclose(ours[1], theirs[1], atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    t=st.sampled_from([1, 2, 4, 6, 8]),
    kernel=st.sampled_from([1, 3, 5, 7]),
    stride=st.sampled_from([1, 2, 4]),
    dilation=st.sampled_from([1, 2, 3]),
    groups=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 5),
)
def test_any_convolution_equals_the_masked_dense_one(
    method, t, kernel, stride, dilation, groups, seed
):
    assume(t % stride == 0)
    assume(not (method == "rows" and groups > 1))  # the table never chooses that
    original = convolution.choose
    convolution.choose = lambda *_: method

    try:
        check_convolution(method, t, kernel, stride, dilation, groups, seed)
    finally:
        convolution.choose = original


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 3])
def test_gradients_by_finite_differences(method, stride, groups):
    if method == "rows" and groups > 1:
        pytest.skip("the rows kernel is for ungrouped convolutions")
    visible, tiles, _ = tiles_and_map(2, 3)
    weight = torch.randn(3, 3 // groups, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    shape = ConvShape(2, (3, 3), (stride,) * 2, (1, 1), (1, 1), groups)

    assert torch.autograd.gradcheck(
        lambda x, w, b: convolution.conv2d(x, w, b, shape, visible),
        (tiles.requires_grad_(), weight, bias),
    )


@pytest.mark.parametrize("window", [Window(1, 6), Window(3, 10), Window(0, 3), Window(-1, 2)])
def test_window_gradients_by_finite_differences(window):
    visible, tiles, _ = tiles_and_map(4, 2)

    assert torch.autograd.gradcheck(
        lambda x: near_tiles(x, visible, window, window), tiles.requires_grad_()
    )


@pytest.mark.parametrize("pool", ["max", "avg", "avg without padding"])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
@pytest.mark.parametrize("backend", ["tiles", "masked"])
def test_pooling_counts_masked_neighbors_as_zero(backend, pool, kernel, stride, padding):
    from hgkd_edge.sparse.masked import MaskedEngine

    visible, _, dense = tiles_and_map(4, 3)
    engine = TileEngine(visible) if backend == "tiles" else MaskedEngine(visible)
    settings_ = (kernel, stride, padding)

    def run(x: Tensor) -> Tensor:
        if pool == "max":
            return F.max_pool2d(x, *settings_)
        return F.avg_pool2d(x, *settings_, count_include_pad=pool == "avg")

    ours = engine.leave(run(engine.enter(dense)))

    assert torch.allclose(ours, run(dense) * visible.sites(4 // stride), atol=1e-12)


def test_every_convolution_finds_a_row_in_the_table():
    for device in ("cpu", "cuda", "mps"):
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            for groups, weight in ((1, (8, 8)), (2, (8, 4)), (8, (8, 1))):
                shape = ConvShape(8, (3, 3), (1, 1), (1, 1), (1, 1), groups)
                chosen = choice.choose(device, dtype, shape, torch.empty(*weight, 3, 3))
                assert chosen in METHODS
                assert (chosen == "direct") == (device == "cuda" and groups == 8)
    known = [*METHODS, "index", "triton"]
    assert all(row.kernel in known for row in choice.kernel_table())


@pytest.mark.parametrize("t", [1, 4])
@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_in_place_activation_may_follow_a_convolution(method, t, side, dtype):
    visible, tiles, _ = tiles_and_map(t, 4)
    weight = torch.randn(8, 4, side, side, dtype=dtype, requires_grad=True)
    shape = ConvShape(t, (side, side), (1, 1), (side // 2,) * 2, (1, 1), 1)

    out = F.relu_(convolution.conv2d(tiles.to(dtype), weight, None, shape, visible))
    put_back(out, visible).mul_(2).sum().backward()

    assert weight.grad.abs().sum() > 0
