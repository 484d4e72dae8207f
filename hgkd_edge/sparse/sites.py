"""A feature map with only its visible sites, standing in for the dense map.

`SiteTensor` reports the shape of the dense map, so timm's own `forward` code runs on it unchanged.
Every torch function called with one is looked up by name in one table of rules (`RULES`). A
function without a rule raises an error with its name, so no result is silently wrong. The mask
travels with the tensor, in the `engine` made for this one pass: no layer or module holds any state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from hgkd_edge.errors import ConversionError
from hgkd_edge.sparse.visible import Visible

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


class Padding(NamedTuple):
    """Zeros (or `value`) that `F.pad` put around a map, not yet read by a convolution or pool."""

    left: int
    right: int
    top: int
    bottom: int
    value: float


Pair = tuple[int, int]  # (rows, columns)


class Convolution(NamedTuple):
    """The settings of a convolution; padding is given as the amount before and after the map."""

    stride: Pair
    before: Pair
    after: Pair
    dilation: Pair
    groups: int


class Pooling(NamedTuple):
    """The settings of a pooling layer."""

    kind: str  # max or avg
    kernel: Pair
    stride: Pair
    before: Pair
    dilation: Pair
    outside: float  # value outside the image
    count_padding: bool  # whether an average counts sites outside the image


class Engine(Protocol):
    """The interface of a backend: how visible sites are stored, and how layers that look across
    sites run on them. One engine serves one forward pass.

    The payload of a `SiteTensor` has the same axes as the dense map, in the same order. A backend
    may choose the sizes of the first and the two spatial axes; the axes between are the channels.
    """

    visible: Visible

    @property
    def masks_after(self) -> bool:
        """Whether the payload contains masked sites, which must be kept at zero."""
        ...

    def enter(self, images: Tensor) -> SiteTensor:
        """The visible pixels of images f[B, 3, H, W]."""
        ...

    def leave(self, x: SiteTensor) -> Tensor:
        """The dense map f[B, C, H, W], zero at masked sites."""
        ...

    def tile_side(self, payload: Tensor, channels_last: bool) -> int:
        """Sites along one side of a patch, t."""
        ...

    def zero_masked(self, x: SiteTensor) -> SiteTensor:
        """The same with masked sites at zero, after an operation that changed them."""
        ...

    def one_at_masked(self, x: SiteTensor) -> SiteTensor:
        """The same with masked sites at one, before an operation that is not defined at zero."""
        ...

    def per_image(self, values: Tensor, x: SiteTensor) -> Tensor:
        """Values of each image `[B, ...]`, in a shape that broadcasts over the payload of `x`."""
        ...

    def sum_sites(self, x: SiteTensor) -> Tensor:
        """Sum over each image's visible sites: `[B, C, 1, 1]`, or with more channel axes."""
        ...

    def max_sites(self, x: SiteTensor) -> Tensor:
        """Maximum over each image's visible sites; zero for an image without any."""
        ...

    def over_sites(self, x: SiteTensor, function: Callable[[Tensor], Tensor]) -> SiteTensor:
        """Apply a function of all visible sites together, such as BatchNorm."""
        ...

    def conv2d(
        self, x: SiteTensor, weight: Tensor, bias: Tensor | None, how: Convolution
    ) -> SiteTensor:
        """Convolution in which masked sites count as zero; its output is masked the same way."""
        ...

    def pool2d(self, x: SiteTensor, how: Pooling) -> SiteTensor:
        """Pooling in which masked sites count as zero; its output is masked the same way."""
        ...


class SiteTensor(torch.Tensor):
    """Stand-in for a dense map `[B, C, H, W]` (or `[B, H, W, C]`) of visible sites.

    Attributes:
        payload: The real tensor, as the backend stores it.
        engine: The backend's state for this pass: the mask and data derived from it.
        channels_last: True when the logical order of axes is `[B, H, W, C]`.
        padding: Padding to be applied by the next convolution or pooling.
    """

    payload: Tensor
    engine: Engine
    channels_last: bool
    padding: Padding | None

    @staticmethod
    def make(
        payload: Tensor,
        engine: Engine,
        *,
        channels_last: bool = False,
        padding: Padding | None = None,
    ) -> SiteTensor:
        """Wrap a payload; the logical shape follows from the payload and the mask."""
        v = engine.visible
        t = engine.tile_side(payload, channels_last)
        height, width = v.h * t, v.w * t
        if padding is not None:
            height += padding.top + padding.bottom
            width += padding.left + padding.right
        if channels_last:
            shape = (v.batch, height, width, *payload.shape[3:])
        else:
            shape = (v.batch, *payload.shape[1:-2], height, width)
        x = torch.Tensor._make_wrapper_subclass(
            SiteTensor, shape, dtype=payload.dtype, device=payload.device
        )
        x.payload, x.engine = payload, engine
        x.channels_last, x.padding = channels_last, padding
        return x

    def like(self, payload: Tensor) -> SiteTensor:
        """The same kind of map with another payload."""
        return SiteTensor.make(payload, self.engine, channels_last=self.channels_last)

    @property
    def spatial(self) -> tuple[int, int]:
        """The two spatial axes."""
        if self.channels_last:
            return 1, 2
        axes = self.payload.dim()
        return axes - 2, axes - 1

    @property
    def side(self) -> int:
        """Side of a tile of this map, in sites."""
        return self.engine.tile_side(self.payload, self.channels_last)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = _name(func)
        rule = RULES.get(name)
        if rule is None:
            raise unsupported(name, "has no exact form on visible sites only")
        return rule(func, *args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # Only calls that bypass __torch_function__ (C++ code, custom autograd) reach this method.
        raise unsupported(str(func), "was called below the level at which masks are understood")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"SiteTensor({list(self.shape)}, visible patches: {self.engine.visible.n})"


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register how the torch functions of these names act on a `SiteTensor`.

    The rule is called with the function itself, then with the call's own arguments.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def unsupported(name: str, why: str) -> ConversionError:
    """The error for one unsupported operation; `sparsify` adds the module path."""
    return ConversionError(
        f"'{name}' {why}",
        hint="choose a convolutional timm model; docs/sparse.md says how to add a rule",
    )


def _name(func: Any) -> str:
    """Name of a torch function, method, or tensor attribute."""
    name = getattr(func, "__name__", str(func))
    if name in ("__get__", "__set__"):
        return f".{func.__self__.__name__}"
    return str(name)
