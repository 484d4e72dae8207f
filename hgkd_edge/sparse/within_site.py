"""Torch functions on a map of visible sites that stay within a site or an image.

Layers that look across sites (convolution, pooling, padding, normalization) are in `layers.py`.
Each rule is registered under the names of the torch functions it serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hgkd_edge.sparse.sites import SiteTensor, rule, unsupported

# fmt: off
# Elementwise functions with f(0) = 0: a masked site that is zero stays zero.
KEEP_ZERO = (
    "relu", "relu_", "relu6", "silu", "silu_", "gelu", "hardswish", "hardtanh", "hardtanh_",
    "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "celu", "mish", "tanh", "tanh_",
    "tanhshrink", "softsign", "prelu", "neg", "abs", "square", "sin", "dropout",
    "dropout_", "to", "float", "half", "bfloat16", "double", "type", "contiguous", "clone",
    "detach", "type_as", "__neg__", "_to_copy",
)
# Elementwise functions that may give a masked site a nonzero value.
MAY_FILL = (
    "sigmoid", "sigmoid_", "hardsigmoid", "softplus", "logsigmoid", "clamp", "clamp_",
    "clamp_min", "clamp_max", "exp", "log", "log1p", "rsqrt", "reciprocal", "pow", "__pow__",
    "cos", "erf", "maximum", "minimum", "addcmul", "addcdiv", "lerp", "where", "sqrt",
)
# Sums and differences: zero stays zero between two masked maps.
ADD = (
    "add", "add_", "sub", "sub_", "subtract", "rsub", "__rsub__", "__add__", "__radd__",
    "__iadd__", "__isub__",
)
# Products and quotients with another operand: zero stays zero.
SCALE = (
    "mul", "mul_", "multiply", "div", "div_", "divide", "true_divide", "__mul__", "__rmul__",
    "__imul__", "__truediv__",
)
# Functions of MAY_FILL without a value or a slope at zero: in the payload, masked sites are one.
NOT_AT_ZERO = ("log", "rsqrt", "reciprocal", "pow", "__pow__", "sqrt", "__rtruediv__", "__rdiv__")
# fmt: on


@rule(*KEEP_ZERO, *MAY_FILL, *ADD, *SCALE, "__rtruediv__", "__rdiv__")
def pointwise(func: Any, *args: Any, **kwargs: Any) -> SiteTensor:
    """Functions of a single site: run on the payload, which holds the visible sites."""
    x = _first(args, kwargs)
    operands = [align(a, x) for a in _away_from_zero(func.__name__, args)]
    out = func(*operands, **{k: align(a, x) for k, a in kwargs.items()})
    if out is operands[0]:  # in place
        if isinstance(args[0], SiteTensor):
            return _seal(func.__name__, args, args[0])
        raise unsupported(func.__name__, "would write a masked map into an ordinary tensor")
    return _seal(func.__name__, args, x.like(out))


def _away_from_zero(name: str, args: Sequence[Any]) -> Sequence[Any]:
    """Operands whose masked sites are one where zero gives NaN or infinity, in gradients too."""
    first = 0 if name in NOT_AT_ZERO else 1 if name in SCALE and "div" in name else len(args)
    return [
        a.engine.one_at_masked(a) if i >= first and isinstance(a, SiteTensor) else a
        for i, a in enumerate(args)
    ]


def _seal(name: str, args: Sequence[Any], out: SiteTensor) -> SiteTensor:
    """Reset masked sites to zero, if the backend stores them and the function changes them."""
    keeps_zero = (
        name in KEEP_ZERO
        or (name in SCALE and isinstance(args[0], SiteTensor))
        or (name in SCALE and "div" not in name)
        or (name in ADD and all(isinstance(a, SiteTensor) for a in args))
    )
    return out.engine.zero_masked(out) if out.engine.masks_after and not keeps_zero else out


def _first(args: Sequence[Any], kwargs: dict[str, Any]) -> SiteTensor:
    found = [a for a in (*args, *kwargs.values()) if isinstance(a, SiteTensor)]
    if any(a.padding is not None for a in found):
        raise unsupported("pad", "must be followed by the convolution or pooling that reads it")
    return max(found, key=lambda a: a.payload.dim())


def align(value: Any, x: SiteTensor) -> Any:
    """An operand in the shape of `x`'s payload, broadcast as on the dense map."""
    if isinstance(value, SiteTensor):
        if value.payload.dim() != x.payload.dim() or value.channels_last != x.channels_last:
            raise unsupported("broadcast", "of maps with different axes has no rule")
        if value.side != x.side:
            raise unsupported("broadcast", "of maps with different resolutions has no rule")
        return value.payload
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    value = value.reshape((1,) * (x.dim() - value.dim()) + tuple(value.shape))
    if any(value.shape[axis] != 1 for axis in x.spatial):
        raise unsupported("broadcast", f"of {list(value.shape)}, which differs from site to site")
    return value if value.shape[0] == 1 else x.engine.per_image(value, x)


@rule("expand_as")
def expand_as(func: Any, values: Any, x: SiteTensor) -> Any:
    """A no-op: the operation that follows broadcasts anyway."""
    if isinstance(values, SiteTensor):
        return values
    align(values, x)
    return values


# --- about the tensor -------------------------------------------------------------------------


@rule(
    ".shape", ".ndim", ".device", ".dtype", ".is_cuda", ".layout", ".is_sparse", ".is_quantized",
    ".is_mps", ".is_cpu", ".is_meta", ".is_nested", "size", "dim", "ndimension", "numel",
    "is_complex", "is_floating_point", "get_device", "element_size",
)  # fmt: skip
def about(func: Any, x: SiteTensor, *args: Any) -> Any:
    """Properties of the dense map that `x` stands for."""
    with torch._C.DisableTorchFunctionSubclass():
        return func(x, *args)


@rule(".requires_grad", ".is_leaf", ".grad_fn")
def about_gradient(func: Any, x: SiteTensor) -> Any:
    """The payload's place in the autograd graph."""
    return func(x.payload)


@rule("is_contiguous")
def is_contiguous(func: Any, x: SiteTensor, **_: Any) -> bool:
    """Always true: networks that ask must not copy."""
    return True  # the backend decides the memory layout


@rule("__len__")
def length(func: Any, x: SiteTensor) -> int:
    """Number of images."""
    return int(x.shape[0])


@rule("new_empty", "new_zeros", "new_ones", "new_full", "new_tensor")
def new(func: Any, x: SiteTensor, *args: Any, **kwargs: Any) -> Tensor:
    """An ordinary tensor of the same dtype and device (stochastic depth draws one per image)."""
    return func(x.payload, *args, **kwargs)


# --- channels -----------------------------------------------------------------------------------


def axis_of(x: SiteTensor, axis: int) -> int:
    """A channel axis, counted from the front; refuses other axes."""
    axis = axis % x.dim()
    if axis == 0 or axis in x.spatial:
        raise unsupported("an operation", f"along axis {axis} mixes images or sites")
    return axis


@rule("cat", "concat", "concatenate")
def cat(func: Any, maps: Sequence[SiteTensor], dim: int = 0, **_: Any) -> SiteTensor:
    """Joins masked maps along channels."""
    x = _first(maps, {})
    if not all(isinstance(m, SiteTensor) for m in maps):
        raise unsupported("cat", "of masked maps with ordinary tensors has no rule")
    return x.like(torch.cat([align(m, x) for m in maps], axis_of(x, dim)))


@rule("stack")
def stack(func: Any, maps: Sequence[SiteTensor], dim: int = 0) -> SiteTensor:
    """Joins masked maps along a new channel axis."""
    x = _first(maps, {})
    if x.channels_last or dim % (x.dim() + 1) not in range(1, x.dim() - 1):
        raise unsupported("stack", f"along axis {dim} has no rule")
    return x.like(torch.stack([align(m, x) for m in maps], dim))


@rule("chunk", "split", "tensor_split", "split_with_sizes", "unbind")
def split(func: Any, x: SiteTensor, *args: Any, dim: int = 0, **kwargs: Any) -> tuple[Any, ...]:
    """Parts of a map along channels."""
    if len(args) == 2:
        *args, dim = args  # type: ignore[assignment]
    elif func.__name__ == "unbind" and args:
        (dim,), args = args, ()
    parts = func(_plain(x), *args, dim=axis_of(x, dim), **kwargs)
    return tuple(x.like(part) for part in parts)


@rule("narrow")
def narrow(func: Any, x: SiteTensor, dim: int, start: int, length: int) -> SiteTensor:
    """A range of channels."""
    return x.like(_plain(x).narrow(axis_of(x, dim), start, length))


@rule("__getitem__")
def getitem(func: Any, x: SiteTensor, index: Any) -> SiteTensor:
    """Slices of channels, as in `x[:, :k]`; refuses single sites and images."""
    index = index if isinstance(index, tuple) else (index,)
    if Ellipsis in index:
        at = index.index(Ellipsis)
        whole = (slice(None),) * (x.dim() - len(index) + 1)
        index = index[:at] + whole + index[at + 1 :]
    for axis, part in enumerate(index):
        if part != slice(None):
            axis_of(x, axis)
            if not isinstance(part, (slice, int)):
                raise unsupported("indexing", "of channels by a tensor has no rule")
    return x.like(_plain(x)[index])


@rule("view", "reshape", "unflatten")
def view(func: Any, x: SiteTensor, *shape: Any) -> SiteTensor:
    """Reshapes that only regroup channels, as in a channel shuffle."""
    if func.__name__ == "unflatten":
        axis, sizes = axis_of(x, shape[0]), shape[1]
        shape = (*x.shape[:axis], *sizes, *x.shape[axis + 1 :])
    if len(shape) == 1 and not isinstance(shape[0], int):
        shape = tuple(shape[0])
    with torch._C.DisableTorchFunctionSubclass():
        logical = torch.empty(tuple(x.shape), device="meta").reshape(shape).shape
    last = tuple(x.shape[-2:])
    if x.channels_last or logical[0] != x.shape[0] or len(logical) < 4 or logical[-2:] != last:
        raise unsupported("reshape", f"from {list(x.shape)} to {list(logical)} mixes sites")
    p = _plain(x)
    return x.like(p.reshape(p.shape[0], *logical[1:-2], *p.shape[-2:]))


@rule("flatten")
def flatten(func: Any, x: SiteTensor, start_dim: int = 0, end_dim: int = -1) -> SiteTensor:
    """Merges channel axes."""
    start, end = axis_of(x, start_dim), axis_of(x, end_dim)
    return x.like(_plain(x).flatten(start, end))


@rule("unsqueeze")
def unsqueeze(func: Any, x: SiteTensor, dim: int) -> SiteTensor:
    """Adds a channel axis of size 1."""
    if x.channels_last or dim % (x.dim() + 1) not in range(1, x.dim() - 1):
        raise unsupported("unsqueeze", f"at axis {dim} has no rule")
    return x.like(_plain(x).unsqueeze(dim))


@rule("squeeze")
def squeeze(func: Any, x: SiteTensor, dim: int) -> SiteTensor:
    """Removes a channel axis of size 1."""
    return x.like(_plain(x).squeeze(axis_of(x, dim)))


@rule("permute", "movedim", "moveaxis", "transpose", "swapaxes")
def permute(func: Any, x: SiteTensor, *axes: Any) -> SiteTensor:
    """Permutes channels first to channels last and back, or reorders several channel axes."""
    order = list(func(torch.empty(tuple(range(x.dim())), device="meta"), *axes).shape)
    payload = _plain(x).permute(order)
    if order[0] == 0 and order[1:3] == list(x.spatial) and x.dim() == 4:
        return SiteTensor.make(payload, x.engine, channels_last=True)
    if order[0] == 0 and order[-2:] == list(x.spatial):
        return SiteTensor.make(payload, x.engine)
    raise unsupported("permute", f"to the order {order} has no rule")


def _plain(x: SiteTensor) -> Tensor:
    return _first((x,), {}).payload


# --- reductions -----------------------------------------------------------------------------------


@rule("sum", "mean", "var", "amax", "norm", "vector_norm", "linalg_vector_norm")
def reduce(func: Any, x: SiteTensor, *args: Any, **kwargs: Any) -> Any:
    """Reduce over channels (per site) or over both spatial axes (per image, visible sites)."""
    name = "norm" if "norm" in func.__name__ else func.__name__
    axes, keepdim, dtype = _reduction(name, x, args, kwargs)
    mixed = [a for a in axes if a in x.spatial]
    if not mixed:
        out = _reduce_plain(name, _plain(x), axes, keepdim, dtype)
        return x.like(out) if keepdim or not x.channels_last else _refuse_reduction(name)
    if len(mixed) != 2 or 0 in axes or name == "var":
        return _refuse_reduction(name)
    channels = [a for a in axes if a not in mixed]
    out = _per_image(name, x)  # ordinary tensor, spatial axes kept with size 1
    if channels:
        out = _reduce_plain(name, out, channels, True, dtype)
    return out if keepdim else out.squeeze(tuple(axes))


def _reduction(
    name: str, x: SiteTensor, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[list[int], bool, Any]:
    """Axes, keepdim and dtype from a reduction's call."""
    rest = list(args)
    if name == "var" and (len(rest) > 1 or set(kwargs) - {"dim", "keepdim"}):
        raise unsupported("var", "with a correction has no rule")
    if name == "norm":
        order = rest.pop(0) if rest else kwargs.get("p", kwargs.get("ord", 2))
        if order not in (2, 2.0, "fro"):
            raise unsupported("norm", f"of order {order} has no rule")
    dim = rest.pop(0) if rest else kwargs.get("dim", kwargs.get("axis"))
    keepdim = rest.pop(0) if rest else kwargs.get("keepdim", False)
    if dim is None:
        _refuse_reduction(name)
    axes = [dim] if isinstance(dim, int) else list(dim or ())
    return [a % x.dim() for a in axes], bool(keepdim), kwargs.get("dtype")


def _reduce_plain(name: str, x: Tensor, axes: list[int], keepdim: bool, dtype: Any) -> Tensor:
    if name in ("amax", "var"):
        return getattr(x, name)(axes, keepdim=keepdim)
    if name == "norm":
        return torch.linalg.vector_norm(x, 2, axes, keepdim, dtype=dtype)
    return getattr(x, name)(axes, keepdim, dtype=dtype)


def _per_image(name: str, x: SiteTensor) -> Tensor:
    """One value per image and channel, from its visible sites."""
    _first((x,), {})
    if name == "amax":
        return x.engine.max_sites(x)
    if name == "norm":
        # The floor keeps the gradient of an all-zero channel finite (zero).
        squares = x.engine.sum_sites(x.like(x.payload.square()))
        return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
    total = x.engine.sum_sites(x)
    return total if name == "sum" else total / visible_sites(x).to(total.dtype)


def visible_sites(x: SiteTensor) -> Tensor:
    """Number of visible sites per image, at least 1: float32 `[B, 1, ...]`."""
    count = x.engine.visible.count.clamp_min(1) * x.side**2
    return count.view(-1, *(1,) * (x.dim() - 1))


def _refuse_reduction(name: str) -> Any:
    raise unsupported(name, "over these axes mixes images, or rows and columns, of masked sites")


@rule("softmax", "log_softmax", "normalize")
def along_channels(func: Any, x: SiteTensor, *args: Any, **kwargs: Any) -> SiteTensor:
    """Functions along one channel axis, site by site."""
    dim = kwargs.get("dim", args[-1] if args else None)
    axis_of(x, 1 if dim is None else dim)
    out = x.like(func(_plain(x), *args, **kwargs))
    return out.engine.zero_masked(out) if out.engine.masks_after else out
