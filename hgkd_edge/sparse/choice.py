"""Chooses the kernel for a layer that looks across sites, from a table of measurements.

Each row states which kernel to use on a device, in a dtype, for a kind of layer, up to a side of
the output tile. The first matching row is used. `docs/sparse.md` describes how the rows were
measured; `kernel_table()` prints them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hgkd_edge.sparse import launch
from hgkd_edge.sparse.shape import ConvShape


class Choice(NamedTuple):
    """One row of the table; '*' matches everything."""

    device: str  # torch device type
    dtype: str
    kind: str  # dense (groups = 1), grouped, depthwise; max pool; gather
    from_side: int  # smallest side of the convolution kernel
    up_to_tile: int  # largest side of the output tile, in sites
    kernel: str  # rows, native, grid, direct; for a gather index or triton
    measured: str  # source of the measurement


MEASURED = "2 cores of an AMD EPYC (Zen 5), torch 2.15"
ON_H200 = "one NVIDIA H200, torch 2.11"
MODELED = "modeled, no GPU has confirmed it; native and index without Triton"
ALL = 1 << 30
TABLE = (
    Choice("cpu", "float32", "dense", 1, 4, "rows", MEASURED),
    Choice("cpu", "bfloat16", "dense", 1, 4, "rows", MEASURED),
    Choice("cpu", "*", "dense", 1, 4, "rows", "as float32"),
    Choice("cpu", "*", "depthwise", 5, 2, "grid", MEASURED),
    Choice("cpu", "*", "depthwise", 1, 1, "grid", MEASURED),
    Choice("cpu", "*", "grouped", 1, 2, "grid", MEASURED),
    Choice("cuda", "bfloat16", "dense", 1, 2, "rows", ON_H200),
    Choice("cuda", "float16", "dense", 1, 2, "rows", "as bfloat16"),
    Choice("cuda", "float32", "dense", 1, ALL, "native", ON_H200),
    Choice("cuda", "*", "depthwise", 1, ALL, "direct", MODELED),
    Choice("cuda", "*", "max pool", 1, ALL, "direct", MODELED),
    Choice("cuda", "*", "gather", 1, ALL, "triton", MODELED),
    Choice("*", "*", "gather", 1, ALL, "index", "default"),
    Choice("*", "*", "*", 1, ALL, "native", "default"),
)


def kind_of(groups: int, weight: Tensor) -> str:
    """dense, depthwise (one channel per group in and out of each), or grouped."""
    if groups == 1:
        return "dense"
    return "depthwise" if weight.shape[0] == groups and weight.shape[1] == 1 else "grouped"


def choose(device: str, dtype: torch.dtype, shape: ConvShape, weight: Tensor) -> str:
    """The kernel for one convolution."""
    side = shape.t // min(shape.stride)
    return _first(device, dtype, kind_of(shape.groups, weight), max(shape.kernel), side)


def pools_by(tiles: Tensor, shape: ConvShape) -> str:
    """The kernel for one max pooling: `direct`, or `native` if that cannot run."""
    side = shape.t // min(shape.stride)
    taps = shape.kernel[0] * shape.kernel[1]
    if not launch.ready(tiles) or taps > launch.TAPS:
        return "native"
    return _first(tiles.device.type, tiles.dtype, "max pool", max(shape.kernel), side)


def gathers_by(values: Tensor) -> str:
    """How rows are gathered: `triton`, or `index` if that cannot run."""
    if not launch.ready(values):
        return "index"
    return _first(values.device.type, values.dtype, "gather", 1, 1)


def _first(device: str, dtype: torch.dtype, kind: str, kernel_side: int, tile: int) -> str:
    """The kernel of the first matching row."""
    name = str(dtype).removeprefix("torch.")
    for row in TABLE:
        fits = row.device in ("*", device) and row.dtype in ("*", name) and row.kind in ("*", kind)
        if fits and kernel_side >= row.from_side and tile <= row.up_to_tile:
            return row.kernel
    raise AssertionError("the last row of the table fits everything")


def kernel_table() -> tuple[Choice, ...]:
    """The table, for `hgkd-edge doctor --kernels`."""
    return TABLE
