"""Every rule of a torch function on visible sites against the function on the dense map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hgkd_edge.errors import ConversionError
from hgkd_edge.sparse.masked import MaskedEngine
from hgkd_edge.sparse.sites import Engine, SiteTensor
from hgkd_edge.sparse.tiles import TileEngine
from hgkd_edge.sparse.visible import Visible
from tests.sparse.helpers import random_visible

T, C = 4, 6  # side of a tile, channels
VISIBLE = random_visible(2, 2, 3)  # maps of 2 images, 8 x 12 sites
PER_CHANNEL = torch.linspace(-1, 2, C, dtype=torch.float64).view(C, 1, 1)
PER_IMAGE = torch.linspace(1, 2, 2 * C, dtype=torch.float64).view(2, C, 1, 1)
KERNEL = torch.linspace(-1, 1, 3 * C * 9, dtype=torch.float64).view(3, C, 3, 3)
MATRIX = torch.linspace(-1, 1, 5 * C, dtype=torch.float64).view(5, C)
SHIFT = torch.linspace(1, 2, 5, dtype=torch.float64)


@pytest.fixture(params=[TileEngine, MaskedEngine])
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.param(Visible(VISIBLE, T))


def dense_map(seed: int = 0) -> Tensor:
    """f64[2, C, 8, 12], zero at masked sites."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(2, C, 2 * T, 3 * T, generator=generator, dtype=torch.float64)
    return dense * sites_of(T)


def sites_of(t: int) -> Tensor:
    return VISIBLE.repeat_interleave(t, 1).repeat_interleave(t, 2)[:, None]


def last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


# fmt: off
OF_ONE_MAP: dict[str, Callable[[Any], Any]] = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "exp": lambda x: x.exp(),
    "add": lambda x: x + 1,
    "radd": lambda x: 1 + x,
    "rsub": lambda x: 1 - x,
    "add channels": lambda x: x + PER_CHANNEL,
    "add images": lambda x: x + PER_IMAGE,
    "scale channels": lambda x: x * PER_CHANNEL,
    "scale images": lambda x: PER_IMAGE * x,
    "divide": lambda x: x / 3,
    "clamp by keyword": lambda x: torch.clamp(x, min=0.5),
    "add in place": lambda x: (x * 1).add_(1),
    "iadd": lambda x: add_in_place(x * 1),
    "clamp, in place": lambda x: (x * 1).clamp_(min=0.5),
    "chunk": lambda x: x.chunk(2, 1)[1],
    "chunk by keyword": lambda x: x.chunk(2, dim=-3)[0],
    "split": lambda x: torch.split(x, [1, 3, 2], dim=1)[1],
    "tensor_split": lambda x: x.tensor_split(3, 1)[2],
    "narrow": lambda x: x.narrow(1, 2, 3),
    "slice": lambda x: x[:, 1:5:2],
    "slice after an ellipsis": lambda x: x[..., 1:3, :, :],
    "cat": lambda x: torch.cat([x, 2 * x], 1),
    "cat from behind": lambda x: torch.cat([x, 2 * x], dim=-3),
    "stack": lambda x: torch.stack([x, 2 * x], 2).flatten(1, 2),
    "stack from behind": lambda x: torch.stack([x, 2 * x], -3).flatten(1, 2),
    "shuffle": lambda x: x.view(2, 2, 3, 8, 12).transpose(1, 2).reshape(2, C, 8, 12),
    "shuffle by a list": lambda x: x.reshape([2, 3, 2, 8, 12]).transpose(1, 2).flatten(1, 2),
    "unflatten": lambda x: x.unflatten(1, (2, 3)).sum(1),
    "unbind": lambda x: x.unflatten(1, (2, 3)).unbind(1)[1],
    "unbind by keyword": lambda x: x.unflatten(1, (2, 3)).unbind(dim=2)[1],
    "index a channel axis": lambda x: x.unflatten(1, (2, 3))[:, 1],
    "squeeze": lambda x: x.unsqueeze(1).squeeze(1),
    "unsqueeze": lambda x: (x.unsqueeze(2) * 2).flatten(1, 2),
    "unsqueeze from behind": lambda x: (x.unsqueeze(-3) * 2).flatten(1, 2),
    "sum of channels": lambda x: x.sum(1, keepdim=True),
    "mean of channels": lambda x: x.mean(dim=1, keepdim=True),
    "greatest channel": lambda x: x.amax(1, keepdim=True),
    "norm of channels": lambda x: x.norm(dim=1, keepdim=True),
    "vector norm": lambda x: torch.linalg.vector_norm(x, 2, 1, True),
    "vector norm, order not given": lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True),
    "variance of channels": lambda x: x.var(1, keepdim=True),
    "channels last": lambda x: first(last(x) * 2),
    "mean, channels last": lambda x: first(last(x).mean(-1, keepdim=True)),
    "linear": lambda x: first(F.linear(last(x), MATRIX)),
    "linear with bias": lambda x: first(F.linear(last(x), MATRIX, SHIFT)),
    "layer norm": lambda x: first(F.layer_norm(last(x), (C,), bias=PER_CHANNEL.flatten())),
    "softmax": lambda x: x.softmax(1),
    "softmax by keyword": lambda x: torch.softmax(x, dim=-3),
    "log softmax, channels last": lambda x: first(F.log_softmax(last(x), -1)),
    "normalize": lambda x: F.normalize(x + 1, dim=1),
    "expand_as": lambda x: PER_CHANNEL.expand_as(x) * x,
    "conv, same": lambda x: F.conv2d(x, KERNEL, padding="same"),
    "conv, same, dilated": lambda x: F.conv2d(x, KERNEL, padding="same", dilation=2),
    "conv, even, same": lambda x: F.conv2d(x, KERNEL[..., :2, :2], padding="same"),
    "conv of unequal sides, same": lambda x: F.conv2d(x, KERNEL[..., :1, :], padding="same"),
    "conv, valid": lambda x: F.conv2d(x, KERNEL[..., :1, :1], padding="valid"),
    "conv of unequal sides": lambda x: F.conv2d(x, KERNEL[..., :1, :], padding=(0, 1)),
    "conv of unequal strides": lambda x: F.conv2d(x, KERNEL[..., :1], padding=(1, 0)),
    "pad, then conv": lambda x: F.conv2d(F.pad(x, (2, 0, 1, 1)), KERNEL),
    "pad twice, then conv": lambda x: F.conv2d(F.pad(F.pad(x, (2, 0)), (0, 0, 1, 1)), KERNEL),
    "pad all sides, then conv": lambda x: F.conv2d(
        F.pad(F.pad(x, (1, 0, 0, 1)), (0, 1, 1, 0)), KERNEL
    ),
    "pad by nothing": lambda x: F.pad(x, (0, 0)) * 2,
    "pad, then max pool": lambda x: F.max_pool2d(F.pad(x, (0, 1, 1, 0), value=-9.0), 2, 1),
    "pad, then average pool": lambda x: F.avg_pool2d(F.pad(x, (0, 1, 1, 0)), 2, 1),
    "pool that keeps its kernel's stride": lambda x: F.max_pool2d(x, 2),
    "torch's own max pool": lambda x: torch.max_pool2d(x, 2),
    "pool with a partly filled window": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "average pool of unequal sides": lambda x: F.avg_pool2d(x, (3, 1), 1, (1, 0)),
}
# fmt: on


def add_in_place(x: Any) -> Any:
    x += 1
    return x


@pytest.mark.parametrize("name", OF_ONE_MAP)
def test_a_rule_gives_what_the_function_gives_at_visible_sites(name: str, engine: Engine) -> None:
    dense, function = dense_map(), OF_ONE_MAP[name]

    out = function(engine.enter(dense))
    ours = engine.leave(out)

    expected = function(dense)
    expected = expected * sites_of(expected.shape[-1] // 3)
    assert isinstance(out, SiteTensor)
    assert out.shape == expected.shape
    torch.testing.assert_close(ours, expected)


def test_a_map_to_be_padded_has_the_size_of_the_padded_map(engine: Engine) -> None:
    dense, sides = dense_map(), (1, 2, 3, 1)

    assert F.pad(engine.enter(dense), sides).shape == F.pad(dense, sides).shape


OF_TWO_MAPS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "maximum": torch.maximum,
    "add, scaled": lambda a, b: torch.add(a, b, alpha=2),
    "one value per site": lambda a, b: a * b.sum(1, keepdim=True),
    "one value per site, first": lambda a, b: a.sum(1, keepdim=True) + b,
    "gate": lambda a, b: a * b.sigmoid(),
    "cat": lambda a, b: torch.cat((a, b), dim=1),
    "divide": lambda a, b: a / (b.square() + 1),
}


@pytest.mark.parametrize("name", OF_TWO_MAPS)
def test_a_rule_of_two_maps_gives_what_the_function_gives(name: str, engine: Engine) -> None:
    a, b, function = dense_map(0), dense_map(1), OF_TWO_MAPS[name]

    ours = engine.leave(function(engine.enter(a), engine.enter(b)))

    torch.testing.assert_close(ours, function(a, b) * sites_of(T))


# Not defined at zero, where a backend may store its masked sites; the first is positive.
NOT_AT_ZERO: dict[str, Callable[[Any, Any], Any]] = {
    "divide": lambda a, b: b / a,
    "divide in place": lambda a, b: (b * 1).div_(a),
    "divide by the map": lambda a, b: torch.div(1.0, a),
    "rdiv": lambda a, b: 2 / a,
    "reciprocal": lambda a, b: a.reciprocal(),
    "rsqrt": lambda a, b: a.rsqrt(),
    "log": lambda a, b: a.log() * b,
    "sqrt": lambda a, b: a.sqrt() * b,
    "root": lambda a, b: a**0.5,
    "power": lambda a, b: torch.pow(a, b),
}


@pytest.mark.parametrize("name", NOT_AT_ZERO)
def test_masked_sites_are_zero_and_have_no_gradient_where_zero_is_no_argument(
    name: str, engine: Engine
) -> None:
    a, b = (dense_map(0).abs() + 0.1) * sites_of(T), dense_map(1)
    a, b, sites = a.requires_grad_(), b.requires_grad_(), sites_of(T)
    function = NOT_AT_ZERO[name]

    ours = engine.leave(function(engine.enter(a), engine.enter(b)))

    filled = torch.where(sites, a, 1.0)
    expected = function(filled, b) * sites
    torch.testing.assert_close(ours, expected)
    found = torch.autograd.grad(ours.square().sum(), (a, b), allow_unused=True)
    wanted = torch.autograd.grad(expected.square().sum(), (a, b), allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one * sites, other * sites)


def by_image(function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of each image's visible sites f[C, n], as [2, C, 1, 1]."""
    pairs = zip(dense_map(), sites_of(T)[:, 0], strict=True)
    return torch.stack([function(image[:, sites]) for image, sites in pairs])[..., None, None]


# fmt: off
OVER_SITES: dict[str, tuple[Callable[[Any], Any], Callable[[Tensor], Tensor]]] = {
    "sum": (lambda x: x.sum((2, 3), keepdim=True), lambda v: v.sum(1)),
    "mean": (lambda x: x.mean([-1, -2], True), lambda v: v.mean(1)),
    "mean without its axes": (lambda x: x.mean((2, 3))[..., None, None], lambda v: v.mean(1)),
    "maximum": (lambda x: x.amax((2, 3), keepdim=True), lambda v: v.amax(1)),
    "norm": (lambda x: x.norm(p=2, dim=(2, 3), keepdim=True), lambda v: v.norm(dim=1)),
    "average pool": (lambda x: F.adaptive_avg_pool2d(x, 1), lambda v: v.mean(1)),
    "max pool": (lambda x: F.adaptive_max_pool2d(x, (1, 1)), lambda v: v.amax(1)),
    "mean of channels too": (
        lambda x: x.mean((1, 2, 3), keepdim=True), lambda v: v.mean().view(1)
    ),
    "two channel axes": (
        lambda x: x.unflatten(1, (2, 3)).sum((3, 4), keepdim=True).flatten(1, 2),
        lambda v: v.sum(1),
    ),
}
# fmt: on


@pytest.mark.parametrize("name", OVER_SITES)
def test_what_is_taken_over_sites_is_taken_over_an_images_visible_ones(
    name: str, engine: Engine
) -> None:
    function, expected = OVER_SITES[name]

    found = function(engine.enter(dense_map()))

    torch.testing.assert_close(found, by_image(expected))


@pytest.mark.parametrize("affine", [True, False])
def test_group_norm_takes_its_statistics_from_an_images_visible_sites(
    engine: Engine, affine: bool
) -> None:
    weight, bias = (PER_CHANNEL.flatten() + 2, PER_CHANNEL.flatten()) if affine else (None, None)
    x = engine.enter(dense_map())

    ours = engine.leave(F.group_norm(x, 2, weight, bias, eps=0.1))

    for image, sites, found in zip(dense_map(), sites_of(T)[:, 0], ours, strict=True):
        expected = F.group_norm(image[None, :, sites], 2, weight, bias, eps=0.1)[0]
        torch.testing.assert_close(found[:, sites], expected)
        assert not found[:, ~sites].any()


@pytest.mark.parametrize(
    "size", [{"scale_factor": 2}, {"size": (16, 24)}, {"scale_factor": (2.0, 2.0)}]
)
def test_sites_are_repeated_within_a_tile(engine: Engine, size: dict[str, Any]) -> None:
    ours = engine.leave(F.interpolate(engine.enter(dense_map()), **size, mode="nearest"))

    torch.testing.assert_close(ours, dense_map().repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_channels_move_to_sites_and_back_within_a_tile(engine: Engine) -> None:
    apart = F.pixel_unshuffle(engine.enter(dense_map()), 2)

    torch.testing.assert_close(engine.leave(apart), F.pixel_unshuffle(dense_map(), 2))
    torch.testing.assert_close(engine.leave(F.pixel_shuffle(apart, 2)), dense_map())


def test_a_map_has_the_properties_of_the_dense_one(engine: Engine) -> None:
    dense, x = dense_map(), engine.enter(dense_map())

    for seen in (x, last(x)):
        plain = dense if seen is x else last(dense)
        assert (seen.shape, seen.ndim, len(seen), seen.numel()) == (
            plain.shape, plain.ndim, len(plain), plain.numel()
        )  # fmt: skip
        assert (seen.size(1), seen.dtype, seen.device) == (plain.size(1), plain.dtype, plain.device)
        assert seen.is_contiguous()
    assert not x.requires_grad
    assert engine.enter(dense.requires_grad_()).requires_grad
    drawn = x.new_full((2, 1, 1, 1), 3.0)
    assert (drawn.dtype, drawn.shape, drawn.sum()) == (torch.float64, (2, 1, 1, 1), 6)


# fmt: off
REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a row": (lambda x: x.mean(2), "mean"),
    "all images": (lambda x: x.mean((0, 2, 3)), "mean"),
    "everything": (lambda x: x.sum(), "sum"),
    "variance of sites": (lambda x: x.var((2, 3)), "var"),
    "variance with a correction": (lambda x: x.var(1, correction=0), "correction"),
    "another norm": (lambda x: x.norm(1, 1), "order 1"),
    "channels last, fewer axes": (lambda x: last(x).sum(-1), "sum"),
    "one image": (lambda x: x[0], "axis 0"),
    "some columns": (lambda x: x[:, :, :, 2:], "axis 3"),
    "channels by a tensor": (lambda x: x[:, torch.tensor([0, 1])], "tensor"),
    "a new first axis": (lambda x: x.unsqueeze(0), "axis 0"),
    "a new last axis": (lambda x: x.unsqueeze(-1), "axis -1"),
    "stacked images": (lambda x: torch.stack([x, x]), "axis 0"),
    "flattened sites": (lambda x: x.flatten(2), "mixes"),
    "reshaped sites": (lambda x: x.reshape(2, C, -1), "mixes sites"),
    "reshaped images": (lambda x: x.view(4, 3, 8, 12), "mixes sites"),
    "axes exchanged": (lambda x: x.transpose(0, 1), "order"),
    "sites exchanged": (lambda x: x.transpose(2, 3), "order"),
    "joined images": (lambda x: torch.cat([x, x]), "axis 0"),
    "joined with an ordinary tensor": (lambda x: torch.cat([x, dense_map()], 1), "ordinary"),
    "another value at each site": (lambda x: x + dense_map(), "site to site"),
    "another resolution": (lambda x: x + F.max_pool2d(x, 2), "resolutions"),
    "another order of axes": (lambda x: x + last(x), "axes"),
    "softmax of a row": (lambda x: x.softmax(3), "axis 3"),
    "padding that is never read": (lambda x: F.pad(x, (1, 1, 1, 1)).relu(), "followed by"),
    "padding by reflection": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "reflect"),
    "cropping": (lambda x: F.pad(x, (-1, 1, 0, 0)), "no rule"),
    "ones around": (lambda x: F.conv2d(F.pad(x, (1,) * 4, value=1.0), KERNEL), "padding with 1"),
    "two kinds of padding": (lambda x: F.pad(F.pad(x, (1, 1)), (1, 1), value=2.0), "different"),
    "padding in the pool too": (lambda x: F.max_pool2d(F.pad(x, (1,) * 4), 3, 1, 1), "own padding"),
    "indices": (lambda x: F.max_pool2d(x, 2, return_indices=True), "indices"),
    "index of the greatest": (
        lambda x: F.adaptive_max_pool2d(x, 1, return_indices=True), "indices"
    ),
    "another divisor": (lambda x: F.avg_pool2d(x, 2, divisor_override=3), "divisor"),
    "pool over tiles": (lambda x: F.max_pool2d(x, 3), "line up"),
    "one more window": (lambda x: F.max_pool2d(x, 4, 4, 1, ceil_mode=True), "line up"),
    "average of a partly filled window": (
        lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True), "partly filled"
    ),
    "pool to a grid": (lambda x: F.adaptive_avg_pool2d(x, 2), "to 2"),
    "no padding": (lambda x: F.conv2d(x, KERNEL), "line up"),
    "conv, channels last": (lambda x: F.conv2d(last(x), KERNEL), "channels first"),
    "conv of five axes": (lambda x: F.conv2d(x.unsqueeze(1), KERNEL), "5 axes"),
    "conv by a map": (lambda x: F.conv2d(KERNEL, x), "ordinary weights"),
    "no rule": (lambda x: x.cumsum(1), "no exact form"),
    "transposed": (lambda x: F.conv_transpose2d(x, KERNEL), "no exact form"),
    "batch norm, channels last": (
        lambda x: F.batch_norm(last(x), None, None, training=True), "channels-last"
    ),
    "group norm, channels last": (lambda x: F.group_norm(last(x), 2), "layout"),
    "layer norm over sites": (lambda x: F.layer_norm(x, (12,)), "mixes sites"),
    "linear over rows": (lambda x: F.linear(x, torch.ones(3, 12)), "channels last"),
    "smooth resizing": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), "bilinear"),
    "half the size": (lambda x: F.interpolate(x, scale_factor=0.5), "0.5"),
    "unequal factors": (lambda x: F.interpolate(x, scale_factor=(1.0, 2.0)), "other tiles"),
    "tiles split": (lambda x: F.pixel_unshuffle(x, 8), "splits tiles"),
}
# fmt: on


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_mix_sites_or_images_is_refused(name: str, engine: Engine) -> None:
    function, reason = REFUSED[name]

    with pytest.raises(ConversionError, match=reason) as refusal:
        function(engine.enter(dense_map()))

    assert refusal.value.hint


@pytest.mark.parametrize("kind", [TileEngine, MaskedEngine])
def test_a_map_is_never_written_into_an_ordinary_tensor(kind: type[Engine]) -> None:
    x = kind(Visible(torch.ones(1, 1, 1, dtype=torch.bool), 1)).enter(torch.ones(1, C, 1, 1))

    with pytest.raises(ConversionError, match="into an ordinary tensor"):
        torch.ones(1, C, 1, 1).add_(x)
