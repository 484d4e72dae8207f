"""Launches the Triton kernels: one function per kernel, on rows `[N, C]`.

Triton is optional. `ready` states whether a tensor can be passed to these functions. If not,
`gather`, `convolution` and `tiles` use equivalent plain torch functions.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from typing import Any

import torch
from torch import Tensor

from hgkd_edge.sparse.shape import ConvShape
from hgkd_edge.sparse.visible import Visible, Window, reach

ELEMENTS = 4096  # values moved by one program of 4 warps: four 128-bit loads a thread in bf16
CHUNKS = 256  # parts of a weight gradient summed in the second stage
TAPS = 127  # taps that an int8 can number


@functools.cache
def _works() -> bool:
    """Whether a kernel compiles and runs; Triton also needs a C compiler at run time."""
    if not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return False
    try:
        rows, tile = torch.zeros(1, 1, device="cuda"), torch.zeros(1, device="cuda").long()
        how = {"GH": 1, "GW": 1, "T": 1}
        _run("from_grid", (rows, tile), (torch.empty_like(rows),), 1, how=how)
    except Exception as error:  # torch is the fallback for any compiler error
        warnings.warn(
            f"Triton kernels do not run ({error}); slower torch functions are used. "
            "hint: install a C compiler, and a Triton that supports this GPU",
            stacklevel=2,
        )
        return False
    return True


def ready(tensor: Tensor) -> bool:
    """Whether Triton kernels run on this tensor; false for fake tensors, as in tracing."""
    return tensor.is_cuda and type(tensor) is Tensor and _works()


def block_of(channels: int) -> int:
    """Channels per program: little waste, and wide enough for 128-bit loads."""
    if channels <= 32:
        return 1 << (channels - 1).bit_length()
    return min((32, 64, 128), key=lambda b: (_parts(channels, b) * b, -b))


def geometry(shape: ConvShape) -> dict[str, int]:
    """A layer's constants, by the kernels' parameter names."""
    names = ("K", "S", "B", "D")
    pairs = (shape.kernel, shape.stride, shape.before, shape.dilation)
    sides = {
        f"{name}{axis}": pair[a]
        for name, pair in zip(names, pairs, strict=True)
        for a, axis in enumerate("YX")
    }
    return {"T": shape.t, "R": reach(*shape.windows, shape.t), **sides}


def window(
    rows: Tensor, visible: Visible, t: int, size: tuple[Window, Window], outside: float, out: Tensor
) -> None:
    """Write the window around each tile to `out` `[n * rows.size * cols.size, C]`."""
    one = ConvShape(t, (1, 1), (1, 1), (size[0].before, size[1].before), (1, 1), 1)
    how = {**geometry(one), "R": reach(*size, t), "OH": size[0].size, "OW": size[1].size}
    _window(rows, visible, how, outside, out, flip=False)


def neighbors(rows: Tensor, visible: Visible, shape: ConvShape, *, flip: bool, out: Tensor) -> None:
    """Write the k * k neighbors of every output site to `out` `[output rows * k * k, C]`."""
    side = [shape.t // s for s in shape.stride]
    _window(rows, visible, {**geometry(shape), "OH": side[0], "OW": side[1]}, 0.0, out, flip=flip)


def _window(
    rows: Tensor, visible: Visible, how: dict[str, int], outside: float, out: Tensor, *, flip: bool
) -> None:
    near = _near(visible, how["R"])
    _run("window", (rows, near), (out,), len(out), outside, how=how, FLIP=flip)


def fold_window(
    grad: Tensor, visible: Visible, t: int, size: tuple[Window, Window], out: Tensor
) -> None:
    """The backward of `window`: write each site's sum over its copies to `out` `[n * t * t, C]`."""
    how = {
        "T": t, "R": reach(*size, t), "OH": size[0].size, "OW": size[1].size,
        "BY": size[0].before, "BX": size[1].before,
    }  # fmt: skip
    inputs = (grad, _near(visible, how["R"]))
    _run("fold_window", inputs, (out,), len(out), how=how, elements=ELEMENTS // 2, ACC=_wide(grad))


def fold_taps(products: Tensor, visible: Visible, shape: ConvShape, out: Tensor) -> None:
    """The backward of `neighbors`: products `[output rows * k * k, C]` to `out`."""
    _layer("fold_taps", (products,), visible, shape, (out,))


def to_grid(
    rows: Tensor, visible: Visible, t: int, padding: tuple[int, int, int, int], out: Tensor
) -> None:
    """Write tiles to the dense grid `out` `[B * H * W, C]` with (left, right, top, bottom)."""
    left, right, top, bottom = padding
    how = {
        "GH": visible.h, "GW": visible.w, "LEFT": left, "TOP": top, "T": t,
        "HP": visible.h * t + top + bottom, "WP": visible.w * t + left + right,
    }  # fmt: skip
    _run("to_grid", (rows, visible.tile_at), (out,), len(out), how=how)


def from_grid(dense: Tensor, visible: Visible, t: int, out: Tensor) -> None:
    """Write the visible tiles of a dense map `[B * H * W, C]` to `out`."""
    how = {"GH": visible.h, "GW": visible.w, "T": t}
    _run("from_grid", (dense, visible.tiles), (out,), len(out), how=how)


def max_pool(
    rows: Tensor, visible: Visible, shape: ConvShape, outside: float, out: Tensor, chosen: Tensor
) -> None:
    """Write the maximum to `out` and the index of its tap to `chosen`, int8."""
    _layer("max_pool", (rows,), visible, shape, (out, chosen), outside)


def max_pool_backward(
    grad: Tensor, chosen: Tensor, visible: Visible, shape: ConvShape, out: Tensor
) -> None:
    """Write the gradient of the pooled rows to `out`."""
    _layer("max_pool_backward", (grad, chosen), visible, shape, (out,))


def depthwise(
    rows: Tensor, weight: Tensor, visible: Visible, shape: ConvShape, out: Tensor
) -> None:
    """Depthwise convolution of rows; weight `[C, 1, k, k]`."""
    _layer("depthwise", (rows, _by_tap(weight)), visible, shape, (out,))


def depthwise_input(
    grad: Tensor, weight: Tensor, visible: Visible, shape: ConvShape, out: Tensor
) -> None:
    """Write the gradient of the convolved rows to `out`."""
    _layer("depthwise_input", (grad, _by_tap(weight)), visible, shape, (out,))


def depthwise_weight(rows: Tensor, grad: Tensor, visible: Visible, shape: ConvShape) -> Tensor:
    """The weight's gradient `[C, 1, k, k]`: partial sums by chunks of sites, then their sum."""
    ky, kx = shape.kernel
    padded, block = 1 << (kx - 1).bit_length(), block_of(rows.shape[1])
    each = max(1, ELEMENTS // (padded * block))  # output sites in a block
    blocks = _parts(_parts(len(grad), each), CHUNKS)
    chunks = _parts(len(grad), each * blocks)
    wide = torch.promote_types(rows.dtype, torch.float32)
    part = torch.empty(chunks, ky, kx, rows.shape[1], dtype=wide, device=rows.device)
    how = geometry(shape)
    kernel = _kernels().depthwise_weight
    grid = (chunks * ky, _parts(rows.shape[1], block))
    with torch.cuda.device_of(rows):
        kernel[grid](
            rows, grad, _near(visible, how["R"]), part, len(grad), blocks, C=rows.shape[1],
            ACC=_wide(rows), KP=padded, ROWS=each, BC=block, **how,
        )  # fmt: skip
    return part.sum(0).permute(2, 0, 1).unsqueeze(1).to(rows.dtype)


def _layer(
    name: str,
    inputs: tuple[Tensor, ...],
    visible: Visible,
    shape: ConvShape,
    outputs: tuple[Tensor, ...],
    *numbers: float,
) -> None:
    how = geometry(shape)
    inputs = (*inputs, _near(visible, how["R"]))
    _run(
        name, inputs, outputs, len(outputs[0]), *numbers, how=how, elements=ELEMENTS // 2,
        ACC=_wide(inputs[0]),
    )  # fmt: skip


def _run(
    name: str,
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    *numbers: float,
    how: dict[str, int],
    elements: int = ELEMENTS,
    **constants: Any,
) -> None:
    """Launch a kernel on blocks of rows and channels of its output."""
    channels = outputs[0].shape[1]
    block = block_of(channels)
    each = max(1, elements // block)
    grid = (_parts(len(outputs[0]), each), _parts(channels, block))
    with torch.cuda.device_of(outputs[0]):
        getattr(_kernels(), name)[grid](
            *inputs, *outputs, *numbers, **how, C=channels, ROWS=each, BC=block, **constants
        )


def _parts(whole: int, part: int) -> int:
    """Number of parts that cover the whole."""
    return -(-whole // part)


def _near(visible: Visible, far: int) -> Tensor:
    """`Visible.neighbors` as int32 `[n, side, side]`."""
    key = ("neighbors as int32", far)
    near = visible.cached(key)
    return visible.keep(key, visible.neighbors(far).int().contiguous()) if near is None else near


def _by_tap(weight: Tensor) -> Tensor:
    """`[C, 1, k, k]` as `[k * k, C]`."""
    return weight.flatten(1).t().contiguous()


def _wide(values: Tensor) -> Any:
    """The dtype used for accumulation."""
    language = _kernels().tl
    return language.float64 if values.dtype == torch.float64 else language.float32


def _kernels() -> Any:
    """The module of kernels; imported here, since Triton is optional."""
    from hgkd_edge.sparse import triton_kernels

    return triton_kernels
