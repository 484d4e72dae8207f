# mypy: ignore-errors
"""The Triton kernels of the tiles backend. Imported by `launch` only, where Triton is installed.

Names: a *row* is one site of the view `[n * t * t, C]`. T is the side of an input tile, OH x OW the
sites of an output tile, K the kernel, S the stride, B the padding before, D the dilation, each for
rows (Y) and columns (X). `near` is int32 `[n, side, side]`, side = 2 R + 1: the tile at every
offset of up to R tiles, -1 if it is masked, -2 outside the image.

No kernel uses atomics: sums run in a fixed order, so results are deterministic.
"""

import triton
import triton.language as tl


@triton.jit
def _site(near: tl.tensor, tile: tl.tensor, y: tl.tensor, x: tl.tensor, T: tl.constexpr,
          R: tl.constexpr) -> tl.tensor:  # fmt: skip
    """Row of the site (y, x), counted from the tile's first site; -1 masked, -2 outside."""
    side: tl.constexpr = 2 * R + 1
    ty = (y + R * T) // T
    tx = (x + R * T) // T
    other = tl.load(near + tile * (side * side) + ty * side + tx)
    inside = (y + R * T - ty * T) * T + (x + R * T - tx * T)
    return tl.where(other >= 0, other * (T * T) + inside, other)


@triton.jit
def _reader(near: tl.tensor, tile: tl.tensor, y: tl.tensor, x: tl.tensor, ky: tl.tensor,
            kx: tl.tensor, T: tl.constexpr, R: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr,
            BY: tl.constexpr, BX: tl.constexpr, DY: tl.constexpr,
            DX: tl.constexpr) -> tl.tensor:  # fmt: skip
    """Output row that reads the site (y, x) through the tap (ky, kx); -1 if none does."""
    side: tl.constexpr = 2 * R + 1
    a = y + BY - ky * DY + R * T
    b = x + BX - kx * DX + R * T
    fits = (a >= 0) & (b >= 0) & (a % SY == 0) & (b % SX == 0)
    ty = a // T
    tx = b // T
    fits = fits & (ty < side) & (tx < side)
    other = tl.load(near + tile * (side * side) + ty * side + tx, mask=fits, other=-1)
    row = other * ((T // SY) * (T // SX)) + (a - ty * T) // SY * (T // SX) + (b - tx * T) // SX
    return tl.where(other >= 0, row, -1)


@triton.jit
def _block(total: tl.tensor, ROWS: tl.constexpr, C: tl.constexpr,
           BC: tl.constexpr) -> tuple:  # fmt: skip
    """This program's rows and channels, and masks for those that exist."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    return r, c, r < total, c < C


@triton.jit
def _at(pointer: tl.tensor, row: tl.tensor, c: tl.tensor,
        C: tl.constexpr) -> tl.tensor:  # fmt: skip
    return pointer + row[:, None].to(tl.int64) * C + c[None, :]


@triton.jit(do_not_specialize=["total"])
def window(x: tl.tensor, near: tl.tensor, out: tl.tensor, total: tl.tensor, outside: tl.tensor,
           C: tl.constexpr, T: tl.constexpr, R: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
           KY: tl.constexpr, KX: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr,
           BY: tl.constexpr, BX: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr,
           FLIP: tl.constexpr, ROWS: tl.constexpr, BC: tl.constexpr) -> None:  # fmt: skip
    """The kernel's inputs at every output site: `[n * OH * OW * KY * KX, C]`."""
    r, c, live, real = _block(total, ROWS, C, BC)
    tap = r % (KY * KX)
    if FLIP:
        tap = KY * KX - 1 - tap
    q = tl.where(live, r // (KY * KX), 0)
    tile = q // (OH * OW)
    y = q // OW % OH * SY - BY + tap // KX * DY
    x_ = q % OW * SX - BX + tap % KX * DX
    row = _site(near, tile, y, x_, T, R)
    value = tl.load(_at(x, row, c, C), mask=(live & (row >= 0))[:, None] & real[None, :], other=0)
    filling = tl.zeros((ROWS, BC), tl.float32) + outside  # a scalar would be cast to bf16 first
    value = tl.where((row == -2)[:, None], filling, value)
    tl.store(_at(out, r, c, C), value, mask=live[:, None] & real[None, :])


@triton.jit(do_not_specialize=["total"])
def fold_window(g: tl.tensor, near: tl.tensor, out: tl.tensor, total: tl.tensor, C: tl.constexpr,
                T: tl.constexpr, R: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
                BY: tl.constexpr, BX: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr,
                BC: tl.constexpr) -> None:  # fmt: skip
    """Each site sums its copies in the windows `[n, OH, OW, C]` of the surrounding tiles."""
    side: tl.constexpr = 2 * R + 1
    r, c, live, real = _block(total, ROWS, C, BC)
    tile = tl.where(live, r // (T * T), 0)
    y = r // T % T
    x = r % T
    acc = tl.zeros((ROWS, BC), ACC)
    for k in tl.static_range(side * side):
        other = tl.load(near + tile * (side * side) + k)
        wy = y - (k // side - R) * T + BY
        wx = x - (k % side - R) * T + BX
        has = live & (other >= 0) & (wy >= 0) & (wy < OH) & (wx >= 0) & (wx < OW)
        at = (other.to(tl.int64) * OH + wy) * OW + wx
        acc += tl.load(_at(g, at, c, C), mask=has[:, None] & real[None, :], other=0).to(ACC)
    tl.store(_at(out, r, c, C), acc.to(out.dtype.element_ty), mask=live[:, None] & real[None, :])


@triton.jit(do_not_specialize=["total"])
def fold_taps(g: tl.tensor, near: tl.tensor, out: tl.tensor, total: tl.tensor, C: tl.constexpr,
              T: tl.constexpr, R: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
              SY: tl.constexpr, SX: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr,
              DY: tl.constexpr, DX: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr,
              BC: tl.constexpr) -> None:  # fmt: skip
    """Each site sums the values of the taps that read it, from `[output rows, KY * KX, C]`."""
    r, c, live, real = _block(total, ROWS, C, BC)
    tile = tl.where(live, r // (T * T), 0)
    acc = tl.zeros((ROWS, BC), ACC)
    for ky in range(KY):
        for kx in tl.static_range(KX):
            row = _reader(near, tile, r // T % T, r % T, ky, kx, T, R, SY, SX, BY, BX, DY, DX)
            at = row.to(tl.int64) * (KY * KX) + ky * KX + kx
            has = (live & (row >= 0))[:, None] & real[None, :]
            acc += tl.load(_at(g, at, c, C), mask=has, other=0).to(ACC)
    tl.store(_at(out, r, c, C), acc.to(out.dtype.element_ty), mask=live[:, None] & real[None, :])


@triton.jit(do_not_specialize=["total"])
def to_grid(x: tl.tensor, tile_at: tl.tensor, out: tl.tensor, total: tl.tensor, GH: tl.constexpr,
            GW: tl.constexpr, LEFT: tl.constexpr, TOP: tl.constexpr, HP: tl.constexpr,
            WP: tl.constexpr, C: tl.constexpr, T: tl.constexpr, ROWS: tl.constexpr,
            BC: tl.constexpr) -> None:  # fmt: skip
    """Tiles on the grid of GH x GW patches, padded to HP x WP sites; zero elsewhere."""
    r, c, live, real = _block(total, ROWS, C, BC)
    y = r // WP % HP - TOP
    x_ = r % WP - LEFT
    inside = live & (y >= 0) & (y < GH * T) & (x_ >= 0) & (x_ < GW * T)
    patch = (r // (HP * WP) * GH + y // T) * GW + x_ // T
    tile = tl.load(tile_at + patch, mask=inside, other=-1).to(tl.int32)
    row = tile * (T * T) + y % T * T + x_ % T
    has = (inside & (tile >= 0))[:, None] & real[None, :]
    value = tl.load(_at(x, row, c, C), mask=has, other=0)
    tl.store(_at(out, r, c, C), value, mask=live[:, None] & real[None, :])


@triton.jit(do_not_specialize=["total"])
def from_grid(dense: tl.tensor, tiles: tl.tensor, out: tl.tensor, total: tl.tensor,
              GH: tl.constexpr, GW: tl.constexpr, C: tl.constexpr, T: tl.constexpr,
              ROWS: tl.constexpr, BC: tl.constexpr) -> None:  # fmt: skip
    """The visible tiles of a dense map `[B, GH * T, GW * T, C]`."""
    r, c, live, real = _block(total, ROWS, C, BC)
    patch = tl.load(tiles + tl.where(live, r // (T * T), 0)).to(tl.int32)
    y = patch // GW % GH * T + r // T % T
    row = (patch // (GH * GW) * (GH * T) + y) * (GW * T) + patch % GW * T + r % T
    mask = live[:, None] & real[None, :]
    tl.store(_at(out, r, c, C), tl.load(_at(dense, row, c, C), mask=mask), mask=mask)


@triton.jit(do_not_specialize=["total"])
def max_pool(x: tl.tensor, near: tl.tensor, out: tl.tensor, chosen: tl.tensor, total: tl.tensor,
             outside: tl.tensor, C: tl.constexpr, T: tl.constexpr, R: tl.constexpr,
             KY: tl.constexpr, KX: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr,
             BY: tl.constexpr, BX: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr,
             ACC: tl.constexpr, ROWS: tl.constexpr, BC: tl.constexpr) -> None:  # fmt: skip
    """Maximum over the kernel, and the tap it came from: the first one, as in torch."""
    r, c, live, real = _block(total, ROWS, C, BC)
    q = tl.where(live, r, 0)
    tile = q // ((T // SY) * (T // SX))
    y = q // (T // SX) % (T // SY) * SY - BY
    x_ = q % (T // SX) * SX - BX
    best = tl.full((ROWS, BC), float("-inf"), ACC)
    at = tl.zeros((ROWS, BC), tl.int32)
    for ky in range(KY):
        for kx in tl.static_range(KX):
            row = _site(near, tile, y + ky * DY, x_ + kx * DX, T, R)
            has = (live & (row >= 0))[:, None] & real[None, :]
            value = tl.load(_at(x, row, c, C), mask=has, other=0).to(ACC)
            value = tl.where((row == -2)[:, None], outside, value)
            better = (value > best) | (value != value)  # NaN propagates
            best = tl.where(better, value, best)
            at = tl.where(better, ky * KX + kx, at)
    mask = live[:, None] & real[None, :]
    tl.store(_at(out, r, c, C), best.to(out.dtype.element_ty), mask=mask)
    tl.store(_at(chosen, r, c, C), at.to(tl.int8), mask=mask)


@triton.jit(do_not_specialize=["total"])
def max_pool_backward(g: tl.tensor, chosen: tl.tensor, near: tl.tensor, out: tl.tensor,
                      total: tl.tensor, C: tl.constexpr, T: tl.constexpr, R: tl.constexpr,
                      KY: tl.constexpr, KX: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr,
                      BY: tl.constexpr, BX: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr,
                      ACC: tl.constexpr, ROWS: tl.constexpr,
                      BC: tl.constexpr) -> None:  # fmt: skip
    """Each site sums the gradients of the outputs that chose it."""
    r, c, live, real = _block(total, ROWS, C, BC)
    tile = tl.where(live, r // (T * T), 0)
    acc = tl.zeros((ROWS, BC), ACC)
    for ky in range(KY):
        for kx in tl.static_range(KX):
            row = _reader(near, tile, r // T % T, r % T, ky, kx, T, R, SY, SX, BY, BX, DY, DX)
            has = (live & (row >= 0))[:, None] & real[None, :]
            mine = tl.load(_at(chosen, row, c, C), mask=has, other=-1) == ky * KX + kx
            acc += tl.where(mine, tl.load(_at(g, row, c, C), mask=has, other=0).to(ACC), 0)
    tl.store(_at(out, r, c, C), acc.to(out.dtype.element_ty), mask=live[:, None] & real[None, :])


@triton.jit(do_not_specialize=["total"])
def depthwise(x: tl.tensor, weight: tl.tensor, near: tl.tensor, out: tl.tensor, total: tl.tensor,
              C: tl.constexpr, T: tl.constexpr, R: tl.constexpr, KY: tl.constexpr,
              KX: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, BY: tl.constexpr,
              BX: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr, ACC: tl.constexpr,
              ROWS: tl.constexpr, BC: tl.constexpr) -> None:  # fmt: skip
    """Depthwise convolution; weight `[KY * KX, C]`."""
    r, c, live, real = _block(total, ROWS, C, BC)
    q = tl.where(live, r, 0)
    tile = q // ((T // SY) * (T // SX))
    y = q // (T // SX) % (T // SY) * SY - BY
    x_ = q % (T // SX) * SX - BX
    acc = tl.zeros((ROWS, BC), ACC)
    for ky in range(KY):
        for kx in tl.static_range(KX):
            row = _site(near, tile, y + ky * DY, x_ + kx * DX, T, R)
            has = (live & (row >= 0))[:, None] & real[None, :]
            w = tl.load(weight + (ky * KX + kx) * C + c, mask=real, other=0).to(ACC)
            acc += tl.load(_at(x, row, c, C), mask=has, other=0).to(ACC) * w[None, :]
    tl.store(_at(out, r, c, C), acc.to(out.dtype.element_ty), mask=live[:, None] & real[None, :])


@triton.jit(do_not_specialize=["total"])
def depthwise_input(g: tl.tensor, weight: tl.tensor, near: tl.tensor, out: tl.tensor,
                    total: tl.tensor, C: tl.constexpr, T: tl.constexpr, R: tl.constexpr,
                    KY: tl.constexpr, KX: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr,
                    BY: tl.constexpr, BX: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr,
                    ACC: tl.constexpr, ROWS: tl.constexpr, BC: tl.constexpr) -> None:  # fmt: skip
    """The input's gradient: each site reads the outputs that depend on it."""
    r, c, live, real = _block(total, ROWS, C, BC)
    tile = tl.where(live, r // (T * T), 0)
    acc = tl.zeros((ROWS, BC), ACC)
    for ky in range(KY):
        for kx in tl.static_range(KX):
            row = _reader(near, tile, r // T % T, r % T, ky, kx, T, R, SY, SX, BY, BX, DY, DX)
            has = (live & (row >= 0))[:, None] & real[None, :]
            w = tl.load(weight + (ky * KX + kx) * C + c, mask=real, other=0).to(ACC)
            acc += tl.load(_at(g, row, c, C), mask=has, other=0).to(ACC) * w[None, :]
    tl.store(_at(out, r, c, C), acc.to(out.dtype.element_ty), mask=live[:, None] & real[None, :])


@triton.jit(do_not_specialize=["total", "blocks"])
def depthwise_weight(x: tl.tensor, g: tl.tensor, near: tl.tensor, part: tl.tensor,
                     total: tl.tensor, blocks: tl.tensor, C: tl.constexpr, T: tl.constexpr,
                     R: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr, SY: tl.constexpr,
                     SX: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr, DY: tl.constexpr,
                     DX: tl.constexpr, ACC: tl.constexpr, KP: tl.constexpr, ROWS: tl.constexpr,
                     BC: tl.constexpr) -> None:  # fmt: skip
    """First stage of the weight's gradient: `part` `[chunks, KY, KX, C]`, to be summed.

    A program takes one row of the kernel and `blocks` blocks of ROWS output sites.
    """
    ky = tl.program_id(0) % KY
    chunk = tl.program_id(0) // KY
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    kx = tl.arange(0, KP)
    real = c < C
    acc = tl.zeros((ROWS, KP, BC), ACC)
    for i in range(blocks):
        r = (chunk * blocks + i) * ROWS + tl.arange(0, ROWS)
        live = r < total
        q = tl.where(live, r, 0)
        tile = q // ((T // SY) * (T // SX))
        y = q // (T // SX) % (T // SY) * SY - BY + ky * DY
        x_ = (q % (T // SX) * SX - BX)[:, None] + tl.minimum(kx, KX - 1)[None, :] * DX
        row = _site(near, tile[:, None], y[:, None], x_, T, R)  # [ROWS, KP]
        has = (live[:, None] & (row >= 0) & (kx < KX)[None, :])[:, :, None] & real[None, None, :]
        at = x + row[:, :, None].to(tl.int64) * C + c[None, None, :]
        grad = tl.load(_at(g, q, c, C), mask=live[:, None] & real[None, :], other=0).to(ACC)
        acc += tl.load(at, mask=has, other=0).to(ACC) * grad[:, None, :]
    out = part + ((chunk * KY + ky) * KX + kx)[:, None] * C + c[None, :]
    tl.store(out, tl.sum(acc, 0), mask=(kx < KX)[:, None] & real[None, :])
