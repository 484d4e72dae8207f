"""Which patches of a batch are visible, and the positions of their sites.

A mask patch is `patch` pixels square, the deepest stride of the network. At stride s, each visible
patch is therefore a tile of t x t sites, t = patch / s, and the visible sites of a feature map form
an ordinary tensor `[n, C, t, t]`. The sites that a convolution needs beyond its own tile (the halo)
are found through the row maps made by this module: a *row* is one site of the `[n * t * t, C]`
view.

Everything is computed on the mask's device and kept for one forward pass. The host waits for the
device only to count the visible patches. If the number per image is known in advance, nothing
waits, and no shape depends on the mask.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hgkd_edge.errors import ConversionError


class Window(NamedTuple):
    """One axis of the region a layer reads around a tile, in sites of its input.

    Site `i` of the window lies at `i - before` relative to the tile's first site.
    """

    before: int  # sites read before the tile starts; negative if the tile's first sites are skipped
    size: int  # total sites read


class Visible:
    """The visible patches of one batch.

    Args:
        visible: bool `[B, h, w]`, True = visible.
        patch: Side of a patch in pixels.
        per_image: Number of visible patches in every image, if it is the same and known; it is
            checked on the device.

    Attributes:
        n: Number of visible patches in the batch.
        tiles: int64 `[n]`, flat index of each visible patch in `[B, h, w]`, ascending.
        image, row, col: int64 `[n]`, position of each visible patch.
        tile_at: int64 `[B, h, w]`, the tile at each patch, -1 where it is masked.
        count: float32 `[B]`, number of visible patches per image.
    """

    def __init__(self, visible: Tensor, patch: int, per_image: int | None = None) -> None:
        if visible.dtype != torch.bool or visible.dim() != 3:
            raise ConversionError(
                f"visible must be bool [B, h, w], got {visible.dtype} {list(visible.shape)}",
                hint="True marks a visible patch; one entry per mask patch",
            )
        self.mask = visible
        self.patch = patch
        self.batch, self.h, self.w = visible.shape
        if per_image is None:
            self.tiles = visible.flatten().nonzero().squeeze(1)  # the only host sync of a pass
        else:
            first = torch.arange(0, visible.numel(), self.h * self.w, device=visible.device)
            self.tiles = (first[:, None] + indices(visible.flatten(1), per_image)).flatten()
        self.n = int(self.tiles.numel())
        if self.n == 0:
            raise ConversionError(
                "no patch of the batch is visible", hint="lower mask.ratio or enlarge the image"
            )
        self.image = self.tiles // (self.h * self.w)
        self.count = visible.flatten(1).sum(1).float()
        self.row = self.tiles // self.w % self.h
        self.col = self.tiles % self.w
        tile_at = self.tiles.new_full((visible.numel(),), -1)
        tile_at[self.tiles] = torch.arange(self.n, device=visible.device)
        self.tile_at = tile_at.view(visible.shape)
        self._cache: dict[tuple[object, ...], Tensor] = {}
        self._scratch: dict[tuple[str, torch.dtype], Tensor] = {}

    @property
    def device(self) -> torch.device:
        """Where the mask and the tables made from it are."""
        return self.tiles.device

    def neighbors(self, up_to: int) -> Tensor:
        """Tile next to each tile, at every offset of up to `up_to` patches.

        Returns:
            int64 `[n, 2 * up_to + 1, 2 * up_to + 1]`: the tile's number, -1 if the patch is masked,
            -2 if it lies outside the image.
        """
        key = ("neighbors", up_to)
        if key not in self._cache:
            steps = torch.arange(-up_to, up_to + 1, device=self.device)
            row = self.row[:, None] + steps  # [n, 2 * up_to + 1]
            col = self.col[:, None] + steps
            inside = ((row >= 0) & (row < self.h))[:, :, None]
            inside = inside & ((col >= 0) & (col < self.w))[:, None, :]
            row, col = row.clamp(0, self.h - 1), col.clamp(0, self.w - 1)
            found = self.tile_at[self.image[:, None, None], row[:, :, None], col[:, None, :]]
            self._cache[key] = torch.where(inside, found, -2)
        return self._cache[key]

    def window_rows(self, t: int, rows: Window, cols: Window) -> Tensor:
        """Row of each site that a layer reads around each tile.

        Args:
            t: Side of a tile in sites.
            rows, cols: The window along each axis.

        Returns:
            int64 `[n, rows.size, cols.size]`: row of `[n * t * t, C]`, -1 if the site is masked, -2
            if it lies outside the image.
        """
        key = ("window", t, rows, cols)
        if key not in self._cache:
            y_tile, y_in = _split(rows, t, self.device)
            x_tile, x_in = _split(cols, t, self.device)
            far = reach(rows, cols, t)
            near = self.neighbors(far)
            tile = near[:, y_tile + far][:, :, x_tile + far]  # [n, rows.size, cols.size]
            site = y_in[:, None] * t + x_in[None, :]
            self._cache[key] = torch.where(tile >= 0, tile * (t * t) + site, tile)
        return self._cache[key]

    def grid_rows(self, t: int) -> Tensor:
        """Position of each row in the dense map: int64 `[n * t * t]` into `[B * H * W]`."""
        key = ("grid", t)
        if key not in self._cache:
            inside = torch.arange(t, device=self.device)
            y = self.row[:, None] * t + inside  # [n, t]
            x = self.col[:, None] * t + inside
            first = self.image * (self.h * t)
            flat = (first[:, None] + y)[:, :, None] * (self.w * t) + x[:, None, :]
            self._cache[key] = flat.flatten()
        return self._cache[key]

    def sites(self, t: int) -> Tensor:
        """The mask at a map's own resolution: bool `[B, 1, H, W]`, True = visible."""
        key = ("sites", t)
        if key not in self._cache:
            grown = self.mask.repeat_interleave(t, 1).repeat_interleave(t, 2)
            self._cache[key] = grown.unsqueeze(1)
        return self._cache[key]

    def cached(self, key: tuple[object, ...]) -> Tensor | None:
        """A result that a kernel cached for this mask under its key."""
        return self._cache.get(key)

    def keep(self, key: tuple[object, ...], value: Tensor) -> Tensor:
        """Cache a tensor derived from this mask for the rest of the pass."""
        self._cache[key] = value
        return value

    def scratch(self, name: str, size: tuple[int, int], like: Tensor) -> Tensor:
        """A buffer for a gather whose result is read immediately and then discarded.

        On a CPU, allocating fresh memory costs more than the gather itself (the operating system
        zeroes pages), so one buffer per name serves the whole pass, forward and backward.

        Returns:
            Uninitialized `size` tensor; valid until the next request for the same name.
        """
        key, count = (name, like.dtype), size[0] * size[1]
        if key not in self._scratch or self._scratch[key].numel() < count:
            self._scratch[key] = torch.empty(count, dtype=like.dtype, device=like.device)
        return self._scratch[key][:count].view(size)


def indices(chosen: Tensor, count: int) -> Tensor:
    """Positions of the True values in each row, without waiting for the device.

    Args:
        chosen: bool `[B, N]`, exactly `count` of them True in every row. Any other number raises an
            error, which a GPU reports late.

    Returns:
        int64 `[B, count]`, ascending.
    """
    as_stated = (chosen.sum(1) == count).all()
    torch._assert_async(
        as_stated, f"not every image has {count} visible patches, as per_image says"
    )
    # A stable sort puts the True values in front, in their order.
    return chosen.to(torch.uint8).sort(dim=1, descending=True, stable=True)[1][:, :count]


def _split(window: Window, t: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Offset in whole tiles, and position inside that tile, of each site of a window."""
    offset = torch.arange(window.size, device=device) - window.before
    tile = torch.div(offset, t, rounding_mode="floor")
    return tile, offset - tile * t


def reach(rows: Window, cols: Window, t: int) -> int:
    """The largest distance in tiles that a window reads."""
    spans = [(-w.before, w.size - w.before - 1) for w in (rows, cols)]
    return max(max(-(low // t), high // t) for low, high in spans)
