"""Triton's kernels in its interpreter, compared with the engine in plain torch.

`test_triton.py` runs this file in a process with TRITON_INTERPRET=1, which must be set before
Triton is imported.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from hgkd_edge.sparse import convolution, gather, launch
from hgkd_edge.sparse.shape import ConvShape
from hgkd_edge.sparse.sites import Pooling
from hgkd_edge.sparse.tiles import TileEngine
from hgkd_edge.sparse.visible import Visible, Window
from tests.sparse.helpers import random_visible

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
tiles_module = sys.modules["hgkd_edge.sparse.tiles"]


@contextlib.contextmanager
def triton(method: str | None = None) -> Iterator[None]:
    """Every function by its Triton kernel, on CPU tensors; convolutions by `method`."""
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context
        patch(mock.patch.object(launch, "ready", return_value=True))
        patch(mock.patch.object(gather, "gathers_by", return_value="triton"))
        patch(mock.patch.object(tiles_module, "pools_by", return_value="direct"))
        if method:
            patch(mock.patch.object(convolution, "choose", return_value=method))
        yield


def make(t: int, channels: int, dtype: torch.dtype, seed: int = 0) -> tuple[Visible, Tensor]:
    """Masked patches inside, at the edges and at the corners of two images of 2 x 3 patches."""
    visible = Visible(random_visible(2, 2, 3, seed=seed), t)
    torch.manual_seed(seed)
    tiles = torch.randn(visible.n, channels, t, t).to(dtype)
    return visible, tiles.contiguous(memory_format=torch.channels_last)


def compare(function: Callable[..., Tensor], inputs: list[Tensor], **how: Any) -> None:
    """Value and gradients, by Triton in the inputs' dtype and by plain torch in float64."""
    dtype = inputs[0].dtype
    ours, theirs = (
        [x.detach().to(d).requires_grad_() for x in inputs] for d in (dtype, torch.float64)
    )
    with triton(how.get("method")):
        out = function(*ours)
        torch.manual_seed(1)
        grad = torch.randn(out.shape).to(dtype)
        gradients = torch.autograd.grad(out, ours, grad)
    expected = function(*theirs)
    wanted = torch.autograd.grad(expected, theirs, grad.double())

    for a, b in zip((out, *gradients), (expected, *wanted), strict=True):
        assert a.dtype == dtype
        scale = float(b.detach().abs().max()) + 1e-6
        assert float((a.double() - b).detach().abs().max()) <= TOLERANCE[dtype] * scale


CONVOLUTIONS = [  # t, kernel, stride, before, dilation, channels
    (4, (3, 3), (1, 1), (1, 1), (1, 1), 5),
    (4, (3, 3), (2, 2), (1, 1), (1, 1), 40),
    (4, (3, 3), (2, 2), (0, 0), (1, 1), 3),  # 'same' padding of TensorFlow's models
    (2, (7, 7), (1, 1), (3, 3), (1, 1), 8),
    (1, (5, 5), (1, 1), (2, 2), (1, 1), 7),
    (2, (3, 3), (1, 1), (2, 2), (2, 2), 16),
    (2, (3, 3), (2, 2), (2, 2), (2, 2), 4),
    (4, (1, 5), (1, 1), (0, 2), (1, 1), 6),
    (4, (2, 2), (2, 2), (0, 0), (1, 1), 6),
    (4, (1, 1), (4, 4), (-1, -1), (1, 1), 6),  # reads inside its tile only
]


@DTYPES
@pytest.mark.parametrize(("t", "kernel", "stride", "before", "dilation", "channels"), CONVOLUTIONS)
def test_depthwise(t, kernel, stride, before, dilation, channels, dtype):
    visible, tiles = make(t, channels, dtype)
    weight, bias = torch.randn(channels, 1, *kernel).to(dtype), torch.randn(channels).to(dtype)
    shape = ConvShape(t, kernel, stride, before, dilation, channels)

    # A method, not "native", must have been taken: the kernels are counted.
    with mock.patch.object(launch, "depthwise", wraps=launch.depthwise) as forward:
        compare(
            lambda x, w, b: convolution.conv2d(x, w, b, shape, visible),
            [tiles, weight, bias],
            method="direct",
        )
    assert forward.call_count == 1


@pytest.mark.parametrize("method", ["rows", "native", "grid"])
@pytest.mark.parametrize(
    ("t", "kernel", "stride", "before", "dilation", "channels", "dtype"),
    [
        *((*layer, torch.float32) for layer in CONVOLUTIONS),
        *((*layer, torch.bfloat16) for layer in CONVOLUTIONS[:2]),
    ],
)
def test_gathers_of_dense_convolutions(
    method, t, kernel, stride, before, dilation, channels, dtype
):
    visible, tiles = make(t, channels, dtype, seed=1)
    weight = torch.randn(3, channels, *kernel).to(dtype) / 4
    shape = ConvShape(t, kernel, stride, before, dilation, 1)

    compare(
        lambda x, w: convolution.conv2d(x, w, None, shape, visible), [tiles, weight], method=method
    )


@DTYPES
@pytest.mark.parametrize(
    ("window", "outside"),
    [
        (Window(1, 6), 0.0),
        (Window(1, 6), -9.0),
        (Window(1, 6), float("-inf")),
        (Window(5, 14), 0.0),
        (Window(5, 14), float("-inf")),
        (Window(0, 3), -9.0),
        (Window(-1, 2), -9.0),
    ],
)
def test_windows(window, outside, dtype):
    visible, tiles = make(4, 33, dtype)

    with triton():
        ours = gather.gather_window(tiles, visible, 4, window, window, outside=outside, keep=True)
    theirs = gather.gather_window(tiles, visible, 4, window, window, outside=outside, keep=True)

    assert torch.equal(ours, theirs)


@DTYPES
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 2, 3, 0), (-1, 0, -2, 1)])
def test_the_grid(padding, dtype):
    visible, tiles = make(2, 17, dtype)
    dense = torch.randn(2, 17, 4, 6).to(dtype)

    with triton():
        ours = gather.to_grid(tiles, visible, padding), gather.from_grid(dense, visible, 2)
    theirs = gather.to_grid(tiles, visible, padding), gather.from_grid(dense, visible, 2)

    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    compare(lambda x: gather.put_back(x, visible), [tiles])


POOLS = [  # t, kernel, stride, before, dilation, outside
    (4, (3, 3), (2, 2), (1, 1), (1, 1), float("-inf")),
    (4, (3, 3), (2, 2), (0, 0), (1, 1), 0.0),
    (4, (2, 2), (2, 2), (0, 0), (1, 1), float("-inf")),
    (2, (5, 5), (1, 1), (2, 2), (1, 1), float("-inf")),
    (1, (3, 3), (1, 1), (1, 1), (1, 1), float("-inf")),
    (4, (3, 3), (1, 1), (2, 2), (2, 2), float("-inf")),
]


@DTYPES
@pytest.mark.parametrize(("t", "kernel", "stride", "before", "dilation", "outside"), POOLS)
@pytest.mark.parametrize("ties", [True, False])
def test_max_pooling(t, kernel, stride, before, dilation, outside, ties, dtype):
    visible, tiles = make(t, 9, dtype)
    tiles = tiles.round().relu() if ties else tiles  # equal values, as after ReLU
    how = Pooling("max", kernel, stride, before, dilation, outside, True)

    def pool(x: Tensor) -> Tensor:
        engine = TileEngine(visible)
        dense = gather.put_back(x, visible)
        return engine.pool2d(engine.enter(dense), how).payload

    compare(pool, [tiles])


def test_max_pooling_passes_a_nan_on():
    visible, tiles = make(4, 3, torch.float32)
    tiles[0, 1, 2, 2] = float("nan")
    engine = TileEngine(visible)
    x = engine.enter(gather.put_back(tiles, visible))
    how = Pooling("max", (3, 3), (2, 2), (1, 1), (1, 1), float("-inf"), True)

    with triton():
        ours = engine.pool2d(x, how).payload

    assert torch.equal(ours.isnan(), engine.pool2d(x, how).payload.isnan())
    assert ours.isnan().any()


def test_many_rows_and_channels_need_several_programs(monkeypatch):
    monkeypatch.setattr(launch, "ELEMENTS", 1024)
    monkeypatch.setattr(launch, "CHUNKS", 2)
    visible, tiles = make(2, 72, torch.float32)
    weight = torch.randn(72, 1, 3, 3)
    shape = ConvShape(2, (3, 3), (1, 1), (1, 1), (1, 1), 72)

    compare(
        lambda x, w: convolution.conv2d(x, w, None, shape, visible),
        [tiles, weight],
        method="direct",
    )
